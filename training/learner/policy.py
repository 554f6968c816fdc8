"""The policy as the learner sees it: a Hugging Face causal LM that returns log-probabilities where there is loss.

Logits are only computed for positions that predict a loss token, a chunk at a time, and recomputed in the backward pass:
no `[tokens, vocabulary]` tensor is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.learner.tree import PrefixTree

#: Columns of logits at a time. With 512 rows in float32 a block takes 4 MB.
CPU_VOCABULARY_BLOCK = 2048


class Policy(nn.Module):
    """Wraps `model` (anything from `AutoModelForCausalLM` whose attention goes through `AttentionInterface`)."""

    def __init__(self, model: nn.Module, logits_chunk: int) -> None:
        super().__init__()
        self.model = model
        self.logits_chunk = logits_chunk

    def forward(
        self, tree: PrefixTree, predictors_P: Tensor, targets_P: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each target token at its predictor's row, and the entropy there; both `[P]`, float32, of
        softmax(logits / `temperature`)."""
        device = predictors_P.device
        hidden = self.model.base_model(
            input_ids=torch.from_numpy(tree.tokens_U)[None].to(device),
            position_ids=torch.from_numpy(tree.positions_U)[None].to(device),
            use_cache=False,
            tree=tree,
        ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        return _LogProbs.apply(hidden[predictors_P], head.weight, head.bias, targets_P, temperature, self.logits_chunk)


class _LogProbs(torch.autograd.Function):
    """Log-probability of each target and entropy, a block of logits (rows × part of the vocabulary) at a time.

    The gradient of a log-probability is known: (one-hot − softmax) for the logits. Written out, the backward pass holds one block
    of logits instead of the five copies that autograd keeps. Blocks are small enough to stay in a cache, so the normaliser is
    gathered over them: a running maximum m, Σ exp(x − m) and Σ (x − m) exp(x − m). The entropy carries no gradient.
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
        of_target = torch.zeros(len(hidden_PD), device=hidden_PD.device)
        highest = torch.full_like(of_target, torch.finfo(of_target.dtype).min)
        total, weighted = torch.zeros_like(of_target, dtype=torch.float64), torch.zeros_like(of_target, dtype=torch.float64)
        for columns in _blocks(weight_VD):
            for start in range(0, len(hidden_PD), chunk):
                rows = slice(start, start + chunk)
                logits = _logits(hidden_PD[rows], weight_VD[columns], None if bias_V is None else bias_V[columns], temperature)
                column, inside = _within(targets_P[rows], columns)
                of_target[rows] += logits.gather(1, column)[:, 0] * inside
                top = torch.maximum(highest[rows], logits.amax(-1))
                rise = (highest[rows] - top).double()
                shrink = rise.exp()
                exponentials = logits.sub_(top[:, None]).exp()
                weighted[rows] = shrink * (weighted[rows] + total[rows] * rise) + logits.mul_(exponentials).sum(-1)
                total[rows] = shrink * total[rows] + exponentials.sum(-1, dtype=torch.float64)
                highest[rows] = top
        # Apart, and in float64: a confident token's Σ exp(x − m) is 1 and a little, and that little is its gradient.
        ctx.save_for_backward(hidden_PD, weight_VD, bias_V, targets_P, highest, total)
        ctx.temperature, ctx.chunk = temperature, chunk
        entropy = (total.log() - weighted / total).float()
        ctx.mark_non_differentiable(entropy)
        return (of_target - highest - total.log()).float(), entropy

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PD, weight_VD, bias_V, targets_P, highest_P, total_P = ctx.saved_tensors
        grad_hidden = torch.zeros(hidden_PD.shape, dtype=torch.float32, device=hidden_PD.device)
        _, head_is_trained, bias_is_trained, *_ = ctx.needs_input_grad
        grad_weight = torch.empty_like(weight_VD) if head_is_trained else None
        grad_bias = torch.zeros_like(bias_V) if bias_is_trained else None
        for columns in _blocks(weight_VD):
            weight = weight_VD[columns]
            grad_block = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            for start in range(0, len(hidden_PD), ctx.chunk):
                rows = slice(start, start + ctx.chunk)
                hidden, grad = hidden_PD[rows], grad_P[rows, None] / ctx.temperature
                logits = _logits(hidden, weight, None if bias_V is None else bias_V[columns], ctx.temperature)
                exponentials, total = logits.sub_(highest_P[rows, None]).exp_(), total_P[rows, None]
                column, inside = _within(targets_P[rows], columns)
                of_target = (grad * (total - exponentials.gather(1, column)) / total).float()
                grad_logits = exponentials.mul_((-grad / total).float())
                grad_logits.scatter_(1, column, torch.where(inside[:, None], of_target, grad_logits.gather(1, column)))
                grad_logits = grad_logits.to(hidden.dtype)
                grad_hidden[rows] += grad_logits @ weight
                if grad_weight is not None:
                    grad_block += grad_logits.T @ hidden
                if grad_bias is not None:
                    grad_bias[columns] += grad_logits.sum(0)
            if grad_weight is not None:
                grad_weight[columns] = grad_block
        return grad_hidden.to(hidden_PD.dtype), grad_weight, grad_bias, None, None, None


def _blocks(weight_VD: Tensor) -> Iterator[slice]:
    """Parts of the vocabulary: all of it where there are no CPU caches to mind."""
    size = CPU_VOCABULARY_BLOCK if weight_VD.device.type == "cpu" else len(weight_VD)
    for start in range(0, len(weight_VD), size):
        yield slice(start, min(start + size, len(weight_VD)))


def _within(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Each target's column in the block `[rows, 1]` (any column where it is elsewhere), and whether it is in it `[rows]`."""
    column = targets - columns.start
    inside = (column >= 0) & (targets < columns.stop)
    return (column * inside)[:, None], inside


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """float32 `[rows, columns]` of the sampling distribution; the caller may write into it."""
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
