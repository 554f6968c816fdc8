"""Attention over a prefix tree as a mask, for what `attention.py` does not do: GPUs, sliding windows, attention sinks, soft caps.

The row is laid out depth first, so what may see a token is one run of rows: from the token to the end of the subtree that
hangs on its segment. A mask is therefore two comparisons, and which blocks of it are empty, full or mixed follows from each
block's least and greatest numbers; no `[U, U]` tensor is made. On CUDA the mask goes to FlexAttention, compiled; on a CPU,
where FlexAttention has no backward pass, the same mask is written out and used densely: exact, and for small models only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_mask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from training.learner.tree import PrefixTree

NAME = "prefix_tree_mask"
BLOCK = 128  # rows and columns of FlexAttention's blocks

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def masked_tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: PrefixTree,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query `[1, heads, U, dim]`, key and value `[1, kv_heads, U, dim]` → `[1, U, heads, dim]`.

    `sliding_window`: a token sees itself and the window − 1 before it on its path. `s_aux` `[heads]`: a score in each
    softmax that belongs to no token.
    """
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    compute = _flex if query.device.type == "cuda" else _dense
    out, lse = compute(query, key, value, tree, sliding_window, scale, softcap)
    if s_aux is not None:
        out = out * torch.sigmoid(lse - s_aux.to(lse.dtype)[:, None])[..., None].to(out.dtype)
    return out.transpose(1, 2).contiguous(), None


def tree_mask(tree: PrefixTree, window: int | None, device: torch.device) -> MaskMod:
    """Whether row `q` sees row `k`, in FlexAttention's form."""
    end_U = torch.from_numpy(tree.ends_U).to(device)
    if window is None:
        return lambda batch, head, q, k: (k <= q) & (q < end_U[k])
    depth_U = torch.from_numpy(tree.positions_U).to(device)
    return lambda batch, head, q, k: (k <= q) & (q < end_U[k]) & (depth_U[q] - depth_U[k] < window)


def block_mask(tree: PrefixTree, window: int | None, device: torch.device) -> BlockMask:
    """The mask with its blocks sorted out: those left out are empty, those called full are full, the others are looked into."""
    size = len(tree.tokens_U)
    starts = np.arange(0, size, BLOCK)
    first, last = starts, np.minimum(starts + BLOCK, size) - 1
    least_end, greatest_end = np.minimum.reduceat(tree.ends_U, starts), np.maximum.reduceat(tree.ends_U, starts)
    below = starts[:, None] > starts[None, :]  # rows are queries, columns keys
    some = below & (greatest_end[None, :] > first[:, None])
    full = below & (least_end[None, :] > last[:, None])
    if window is not None:
        least, greatest = np.minimum.reduceat(tree.positions_U, starts), np.maximum.reduceat(tree.positions_U, starts)
        some &= least[:, None] - greatest[None, :] < window
        full &= greatest[:, None] - least[None, :] < window
    full &= (last - first == BLOCK - 1)[:, None]  # rows beyond the end must be masked
    mixed = (some & ~full) | np.eye(len(starts), dtype=bool)
    return BlockMask.from_kv_blocks(
        *_listed(mixed, device),
        *_listed(full, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=tree_mask(tree, window, device),
        seq_lengths=(size, size),
    )


def _listed(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """A table `[rows, columns]` as FlexAttention has it: for each row how many columns, and their numbers first."""
    numbers = np.argsort(~blocks, axis=1, kind="stable")
    return tuple(torch.from_numpy(x.astype(np.int32))[None, None].to(device) for x in (blocks.sum(1), numbers))  # type: ignore[return-value]


def _flex(
    query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, window: int | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Output like `query`, and the logarithm of each softmax's denominator, float32 `[1, heads, U]`."""
    mask = tree.derived(("block mask", window, query.device), lambda: block_mask(tree, window, query.device))
    score_mod = None if softcap is None else lambda score, *_: softcap * torch.tanh(score / softcap)
    kernel = _compiled() if query.device.type == "cuda" else flex_attention
    out, aux = kernel(
        query,
        key,
        value,
        score_mod,
        mask,
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return out, aux.lse


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def _dense(
    query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, window: int | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """As `_flex`, with all scores `[heads, U, U]` at once."""
    size, group = query.shape[2], query.shape[1] // key.shape[1]
    sees = tree.derived(
        ("mask", window, query.device),
        lambda: create_mask(tree_mask(tree, window, query.device), None, None, size, size, str(query.device)),
    )
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query * scale) @ key.transpose(2, 3)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.float().masked_fill(~sees, float("-inf"))
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse[..., None]).to(value.dtype) @ value, lse


def register() -> None:
    """Makes the name known to transformers. The mask function returns none: the tree is the mask."""
    AttentionInterface.register(NAME, masked_tree_attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
