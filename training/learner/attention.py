"""Attention over a prefix tree, plugged into Hugging Face models as `attn_implementation="prefix_tree"`.

Each segment's queries attend to the keys of its ancestors and, causally, to its own. The computation is exact: a
segment's keys are concatenated in depth order, which is the order that the trajectory itself would have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from training.learner.tree import PrefixTree

NAME = "prefix_tree"
TILE = 256  # query rows at a time: their weights stay in the cache of a core

Span = tuple[int, int]
Tile = tuple[int, int, int]


def prefix_tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: PrefixTree,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query `[1, heads, U, dim]`, key and value `[1, kv_heads, U, dim]` → `[1, U, heads, dim]`."""
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    out = _TreeAttention.apply(query[0], key[0], value[0], tree, scale)
    return out.transpose(0, 1).unsqueeze(0), None


class _TreeAttention(torch.autograd.Function):
    """Exact attention in tiles of queries; the backward pass recomputes the weights tile by tile.

    Written out because autograd through slices of the row builds a full-size zero tensor per slice (a fifth of a step on
    a CPU), and because the CPU flash kernel's backward is about twice as slow as these matrix products.
    Grouped-query heads are folded into the query rows, so that keys are never repeated.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, scale: float) -> Tensor:
        """query `[heads, U, dim]`, key and value `[kv_heads, U, dim]` → `[heads, U, dim]`."""
        query = query * scale
        ctx.save_for_backward(query, key, value)
        ctx.tree, ctx.scale = tree, scale
        out = torch.empty_like(query)
        query_K, out_K = _fold(query, key), _fold(out, key)
        scratch = _Scratch(query_K, tree)
        for keys, values, _, tiles in _segments(key, value, tree):
            for start, stop, seen in tiles:
                weights = scratch.weights(query_K[:, :, start:stop], keys[:, :seen])
                out_K[:, :, start:stop] = torch.bmm(weights, values[:, :seen]).unflatten(1, (-1, stop - start))
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        query_K, grad_out_K, grad_query_K = _fold(query, key), _fold(grad_out, key), _fold(grad_query, key)
        scratch = _Scratch(query_K, ctx.tree)
        for keys, values, spans, tiles in _segments(key, value, ctx.tree):
            grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
            for start, stop, seen in tiles:
                tile = query_K[:, :, start:stop]
                weights = scratch.weights(tile, keys[:, :seen])
                grad_tile = grad_out_K[:, :, start:stop].flatten(1, 2)
                grad_values[:, :seen].baddbmm_(weights.transpose(1, 2), grad_tile)
                grad_weights = torch.bmm(grad_tile, values[:, :seen].transpose(1, 2), out=scratch.like(weights))
                grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype, grad_input=grad_weights)
                grad_keys[:, :seen].baddbmm_(grad_scores.transpose(1, 2), tile.flatten(1, 2))
                grad_query_K[:, :, start:stop] = torch.bmm(grad_scores, keys[:, :seen]).unflatten(1, (-1, stop - start))
            depth = 0
            for first, last in spans:
                grad_key[:, first:last].add_(grad_keys[:, depth : depth + last - first])
                grad_value[:, first:last].add_(grad_values[:, depth : depth + last - first])
                depth += last - first
        return grad_query.mul_(ctx.scale), grad_key, grad_value, None, None


class _Scratch:
    """Room for one tile's weights and their gradient, written over by the next tile: what was just used is still in a cache."""

    def __init__(self, query_K: Tensor, tree: PrefixTree) -> None:
        kv_heads, group, _, _ = query_K.shape
        rows = max((min(TILE, s.stop - s.start) for s in tree.segments), default=0)
        keys = int(tree.positions_U.max(initial=-1)) + 1
        self._room = [query_K.new_empty(kv_heads * group * rows * keys) for _ in range(2)]
        self._future = query_K.new_full((rows, rows), float("-inf")).triu_(1)  # added: a masked fill takes thrice as long

    def weights(self, query: Tensor, keys: Tensor) -> Tensor:
        """Softmax weights `[kv, group × L, seen]` of a scaled query `[kv, group, L, dim]`, the last L of the `seen` keys."""
        length, seen = query.shape[2], keys.shape[1]
        rows = query.flatten(1, 2)
        room = self._room[0][: rows.shape[0] * rows.shape[1] * seen].view(*rows.shape[:2], seen)
        scores = torch.bmm(rows, keys.transpose(1, 2), out=room)
        if length > 1:
            scores.unflatten(1, (-1, length))[..., seen - length :].add_(self._future[:length, :length])
        return torch.softmax(scores, dim=-1, out=scores)

    def like(self, weights: Tensor) -> Tensor:
        """The second room, of the same shape."""
        return self._room[1][: weights.numel()].view_as(weights)


def _fold(heads_first: Tensor, key: Tensor) -> Tensor:
    """`[heads, U, dim]` → a view `[kv_heads, group, U, dim]`."""
    return heads_first.unflatten(0, (key.shape[0], -1))


def _segments(key: Tensor, value: Tensor, tree: PrefixTree) -> Iterator[tuple[Tensor, Tensor, list[Span], list[Tile]]]:
    """Per segment: its keys and values in depth order, the row spans they come from, and its query tiles.

    A tile `(start, stop, seen)` is a run of query rows and the number of leading keys that its last row may see.
    """
    for segment in tree.segments:
        spans = [(s.start, s.stop) for s in (*(tree.segments[a] for a in segment.ancestors), segment)]
        keys = torch.cat([key[:, a:b] for a, b in spans], dim=1)
        values = torch.cat([value[:, a:b] for a, b in spans], dim=1)
        above = keys.shape[1] - (segment.stop - segment.start)
        starts = range(segment.start, segment.stop, TILE)
        tiles = [(s, min(s + TILE, segment.stop), above + min(s + TILE, segment.stop) - segment.start) for s in starts]
        yield keys, values, spans, tiles


def register() -> None:
    """Makes the name known to transformers. The mask function returns none: the tree is the mask."""
    AttentionInterface.register(NAME, prefix_tree_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
