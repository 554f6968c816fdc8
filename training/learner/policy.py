"""The policy as the learner sees it: a Hugging Face causal LM that returns log-probabilities where there is loss.

Logits are only computed for positions that predict a loss token, a chunk at a time, and recomputed in the backward pass:
no `[tokens, vocabulary]` tensor is ever held.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.learner.tree import PrefixTree


class Policy(nn.Module):
    """Wraps `model` (anything from `AutoModelForCausalLM` whose attention goes through `AttentionInterface`)."""

    def __init__(self, model: nn.Module, logits_chunk: int, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.logits_chunk = logits_chunk
        self.temperature = temperature

    def forward(self, tree: PrefixTree, predictors_P: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each target token at its predictor's row, and the entropy there; both `[P]`, float32."""
        device = predictors_P.device
        hidden = self.model.base_model(
            input_ids=torch.from_numpy(tree.tokens_U)[None].to(device),
            position_ids=torch.from_numpy(tree.positions_U)[None].to(device),
            use_cache=False,
            tree=tree,
        ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        return _LogProbs.apply(hidden[predictors_P], head.weight, head.bias, targets_P, self.temperature, self.logits_chunk)


class _LogProbs(torch.autograd.Function):
    """Log-probability of each target and entropy, a chunk of logits at a time, in place.

    The gradient of a log-probability is known: (one-hot − softmax) for the logits. Written out, the backward pass holds one chunk
    of logits instead of the five copies that autograd keeps. The entropy carries no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_P: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, normalisers = [], [], []
        for hidden, targets in zip(hidden_PD.split(chunk), targets_P.split(chunk), strict=True):
            logits = _logits(hidden, weight_VD, bias_V, temperature)
            normaliser = torch.logsumexp(logits, dim=-1)
            logits.sub_(normaliser[:, None])
            logprobs.append(logits.gather(1, targets[:, None])[:, 0])
            entropies.append(-logits.exp().mul_(logits).sum(-1))
            normalisers.append(normaliser)
        ctx.save_for_backward(hidden_PD, weight_VD, bias_V, targets_P, torch.cat(normalisers))
        ctx.temperature, ctx.chunk = temperature, chunk
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PD, weight_VD, bias_V, targets_P, normaliser_P = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_PD)
        _, head_is_trained, bias_is_trained, *_ = ctx.needs_input_grad
        grad_weight = torch.zeros(weight_VD.shape, dtype=torch.float32, device=weight_VD.device) if head_is_trained else None
        grad_bias = torch.zeros_like(bias_V) if bias_is_trained else None
        for start in range(0, len(hidden_PD), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            hidden, grad = hidden_PD[rows], grad_P[rows, None] / ctx.temperature
            logits = _logits(hidden, weight_VD, bias_V, ctx.temperature)
            grad_logits = logits.sub_(normaliser_P[rows, None]).exp_().mul_(-grad)
            grad_logits.scatter_add_(1, targets_P[rows, None], grad)
            grad_logits = grad_logits.to(hidden.dtype)
            torch.mm(grad_logits, weight_VD, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VD.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """float32 `[rows, vocabulary]` of the sampling distribution; the caller may write into it."""
    logits = nn.functional.linear(hidden, weight, bias)
    logits = logits.float() if logits.dtype != torch.float32 else logits
    return logits if temperature == 1.0 else logits.div_(temperature)


def loss_positions(
    tree: PrefixTree, masks: list[np.ndarray], tokens: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Where logits are needed: rows of the predicting tokens `[P]`, target tokens `[P]`, and how many belong to each sample."""
    predictors, targets, counts = [], [], []
    for rows, mask, ids in zip(tree.rows, masks, tokens, strict=True):
        at = np.flatnonzero(mask[1:])
        predictors.append(rows[at])
        targets.append(ids[at + 1])
        counts.append(len(at))
    return np.concatenate(predictors), np.concatenate(targets), counts
