"""The policy as the learner sees it: a Hugging Face causal LM that returns log-probabilities where there is loss.

Logits are only computed for positions that predict a loss token, a chunk at a time, and recomputed in the backward pass:
no `[tokens, vocabulary]` tensor is ever held.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
        hidden_P = hidden[predictors_P]
        logprobs, entropies = [], []
        for chunk, targets in zip(hidden_P.split(self.logits_chunk), targets_P.split(self.logits_chunk), strict=True):
            logprob, entropy = checkpoint(
                _chunk_logprobs, chunk, head.weight, head.bias, targets, self.temperature, use_reentrant=False
            )
            logprobs.append(logprob)
            entropies.append(entropy)
        return torch.cat(logprobs), torch.cat(entropies)


def _chunk_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """hidden `[rows, dim]` → log-probability of `targets` and entropy, both `[rows]`. The entropy carries no gradient."""
    logits = nn.functional.linear(hidden, weight, bias).float() / temperature
    normaliser = torch.logsumexp(logits, dim=-1)
    logprob = logits.gather(1, targets[:, None])[:, 0] - normaliser
    with torch.no_grad():
        probabilities = torch.exp(logits - normaliser[:, None])
        entropy = normaliser - (probabilities * logits).sum(-1)
    return logprob, entropy


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
