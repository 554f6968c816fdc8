"""What an update costs at least, in floating-point operations, for a prefix tree and for plain packing.

A multiply-add counts as two. Per layer of a gated decoder (Llama, Qwen, SmolLM2) with width d, h query heads and k key heads of
dimension e, and an MLP of width f, the forward pass takes

    per computed token         2 · (d·h·e + 2·d·k·e + h·e·d + 3·d·f)      queries, keys and values, output, MLP
    per visible pair           2 · 2·h·e                                  scores and weighted values

where a pair is a query and a key that it may see: a token of depth n sees n + 1 of them, and a branch still sees its trunk. The
head takes 2·d·V for each predicting position, V the vocabulary; positions that predict nothing have no logits. Backward is twice
forward, as each product has two operands to differentiate. So, forward and backward,

    FLOPs = 3 · (L · (token · computed tokens + 4·h·e · pairs) + 2·d·V · predicting positions)

Computed tokens, pairs and predicting positions are those of the tree: unique tokens, the sum of their depths + 1, and unique
predecessors of loss tokens (two members of a group that sampled the same words need their logits once). Plain packing counts
every trajectory for itself. What a program computes again to save memory is not counted, nor embeddings, norms and softmax.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.learner.tree import PrefixTree, build_tree


@dataclass(frozen=True)
class Shape:
    """The sizes of a dense gated decoder."""

    layers: int
    width: int
    heads: int
    key_heads: int
    head_dim: int
    mlp_width: int
    vocabulary: int

    @classmethod
    def read(cls, folder: Path) -> Shape:
        """From the `config.json` of a Hugging Face folder."""
        raw = json.loads((folder / "config.json").read_text())
        heads = raw["num_attention_heads"]
        return cls(
            layers=raw["num_hidden_layers"],
            width=raw["hidden_size"],
            heads=heads,
            key_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            mlp_width=raw["intermediate_size"],
            vocabulary=raw["vocab_size"],
        )

    @property
    def per_token(self) -> int:
        """Matrix products of one token in one layer, forward."""
        projections = 2 * self.width * self.heads * self.head_dim + 2 * self.width * self.key_heads * self.head_dim
        return 2 * (projections + 3 * self.width * self.mlp_width)

    @property
    def per_pair(self) -> int:
        """Attention of one query to one key in one layer, forward."""
        return 4 * self.heads * self.head_dim

    @property
    def per_prediction(self) -> int:
        """The head at one position, forward."""
        return 2 * self.width * self.vocabulary


@dataclass(frozen=True)
class Work:
    """What is computed: tokens, visible (query, key) pairs, positions with logits."""

    tokens: int
    pairs: int
    predictions: int

    def flops(self, shape: Shape) -> int:
        """Forward and backward."""
        layer = shape.per_token * self.tokens + shape.per_pair * self.pairs
        return 3 * (shape.layers * layer + shape.per_prediction * self.predictions)


def work(sequences: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], share: bool) -> Work:
    """The work of one batch, as one prefix tree or, with `share` false, side by side."""
    tree = build_tree(sequences, share)
    return Work(len(tree.tokens_U), tree.visible_pairs, predictions(tree, masks))


def predictions(tree: PrefixTree, masks: Sequence[Sequence[bool]]) -> int:
    """Positions in the tree whose next token is trained on; `masks[i]` is true on sample i's own tokens."""
    before = [rows[:-1][np.asarray(mask, bool)[1:]] for rows, mask in zip(tree.rows, masks, strict=True)]
    return len(np.unique(np.concatenate(before)))


def flop_ratio(shape: Shape, sequences: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]]) -> float:
    """Plain over tree: the speed-up that the arithmetic allows."""
    return work(sequences, masks, share=False).flops(shape) / work(sequences, masks, share=True).flops(shape)
