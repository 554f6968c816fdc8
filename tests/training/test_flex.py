"""Attention over a prefix tree as a mask equals attention segment by segment; its blocks are what the mask says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.test_attention import random_tree
from training.learner import flex
from training.learner.attention import prefix_tree_attention
from training.learner.flex import BLOCK, block_mask, masked_tree_attention
from training.learner.tree import PrefixTree, build_tree

CPU = torch.device("cpu")


def long_tree(share: bool = True) -> PrefixTree:
    """Several blocks of 128 rows, with full ones, empty ones and mixed ones."""
    rng = np.random.default_rng(0)
    trunk = rng.integers(0, 50, 400).tolist()
    branches = [
        trunk[:cut] + rng.integers(50, 90, more).tolist() for cut, more in ((400, 300), (400, 10), (390, 200), (130, 333))
    ]
    return build_tree([*branches, rng.integers(90, 99, 150).tolist()], share)


def inputs(tree: PrefixTree, heads: int = 6, kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(tree.tokens_U))
    size = len(tree.tokens_U)
    return [torch.randn(1, h, size, 8, generator=generator, dtype=dtype) for h in (heads, kv_heads, kv_heads)]


def whole_samples(tree: PrefixTree, window: int | None) -> Tensor:
    """Who sees whom `[U, U]`, from the samples themselves."""
    size = len(tree.tokens_U)
    sees = torch.zeros(size, size, dtype=torch.bool)
    for rows in tree.rows:
        at, depth = torch.from_numpy(rows), torch.arange(len(rows))
        near = depth[:, None] - depth[None, :]
        sees[at[:, None], at[None, :]] |= (near >= 0) & (near < (window or len(rows)))
    return sees


TREES = {
    **{f"random {seed}": random_tree(seed) for seed in range(4)},
    "side by side": random_tree(1, share=False),
    "several blocks": long_tree(),
    "blocks side by side": long_tree(share=False),
    "whole blocks": build_tree([list(range(256)), [*range(128), *[7] * 128]]),
    "one token": build_tree([[3]]),
}
tree_and_window = pytest.mark.parametrize(("name", "window"), [(name, window) for name in TREES for window in (None, 1, 9, 140)])


@tree_and_window
def test_the_blocks_are_what_the_mask_says(name: str, window: int | None):
    tree = TREES[name]
    sees = whole_samples(tree, window)
    mask = block_mask(tree, window, CPU)
    number = len(mask.kv_indices[0, 0])
    padded = torch.zeros(number * BLOCK, number * BLOCK, dtype=torch.bool)
    padded[: len(sees), : len(sees)] = sees
    for row in range(number):
        mixed = mask.kv_indices[0, 0, row, : mask.kv_num_blocks[0, 0, row]].tolist()
        full = mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]].tolist()
        assert not set(mixed) & set(full)
        for column in range(number):
            block = padded[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            if column in full:
                assert block.all()
            elif column not in mixed:
                assert not block.any()


def test_most_blocks_of_side_by_side_samples_are_left_out():
    mask = block_mask(build_tree([[n] * 256 for n in range(8)], share=False), None, CPU)
    assert (mask.kv_num_blocks + mask.full_kv_num_blocks).sum() == 8 * 3
    assert mask.full_kv_num_blocks.sum() == 8


@pytest.mark.parametrize("name", TREES)
def test_flex_attention_equals_the_segments(name: str):
    tree = TREES[name]
    query, key, value = inputs(tree, dtype=torch.float32)
    got, _ = flex._flex(query, key, value, tree, None, 0.3, None)
    expected, _ = prefix_tree_attention(torch.nn.Module(), query, key, value, None, tree=tree, scaling=0.3)
    torch.testing.assert_close(got.transpose(1, 2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TREES)
def test_the_dense_mask_equals_the_segments_forwards_and_backwards(name: str):
    tree = TREES[name]
    gradients = []
    for attend in (masked_tree_attention, prefix_tree_attention):
        tensors = [x.requires_grad_() for x in inputs(tree, dtype=torch.float64)]
        out, _ = attend(torch.nn.Module(), *tensors, None, tree=tree)
        (out * torch.arange(8.0, dtype=torch.float64)).sum().backward()
        gradients.append([out.detach(), *(x.grad for x in tensors)])
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)  # the softmax here is float32


@tree_and_window
def test_windows_sinks_and_caps_are_the_formula_s(name: str, window: int | None):
    tree = TREES[name]
    query, key, value = inputs(tree, dtype=torch.float32)
    sinks = torch.linspace(-2, 3, query.shape[1])
    scores = 0.5 * query @ key.repeat_interleave(3, 1).transpose(2, 3)
    scores = (4.0 * torch.tanh(scores / 4.0)).masked_fill(~whole_samples(tree, window), float("-inf"))
    with_sink = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    expected = (torch.softmax(with_sink, -1)[..., :-1] @ value.repeat_interleave(3, 1)).transpose(1, 2)
    settings: dict[str, Any] = {"tree": tree, "scaling": 0.5, "sliding_window": window, "softcap": 4.0, "s_aux": sinks}
    got, _ = masked_tree_attention(torch.nn.Module(), query, key, value, None, **settings)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    out, lse = flex._flex(query, key, value, tree, window, 0.5, 4.0)
    out = out * torch.sigmoid(lse - sinks[:, None])[..., None]
    torch.testing.assert_close(out.transpose(1, 2), expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TREES)
def test_compiled_flex_attention_on_a_gpu_equals_the_segments_on_a_cpu(name: str):
    tree = TREES[name]
    tensors = [torch.nn.functional.pad(x, (0, 56)) for x in inputs(tree, dtype=torch.float32)]  # 64 numbers a head
    results = []
    for device, attend in (("cuda", masked_tree_attention), ("cpu", prefix_tree_attention)):
        own = [x.to(device).detach().requires_grad_() for x in tensors]
        out, _ = attend(torch.nn.Module(), *own, None, tree=tree)
        (out * torch.arange(64.0, device=device)).sum().backward()
        results.append([x.detach().cpu() for x in (out, *(x.grad for x in own))])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=2e-2)  # TF32 in the kernel
