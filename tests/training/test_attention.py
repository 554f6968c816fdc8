"""Attention over a prefix tree equals attention with a dense mask, forwards and backwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from training.learner import attention
from training.learner.attention import prefix_tree_attention
from training.learner.tree import PrefixTree, build_tree


def random_tree(seed: int, share: bool = True) -> PrefixTree:
    """Samples that branch off each other at random places."""
    rng = np.random.default_rng(seed)
    samples = [rng.integers(0, 50, rng.integers(3, 40)).tolist()]
    for _ in range(7):
        root = samples[rng.integers(len(samples))]
        samples.append(root[: rng.integers(0, len(root) + 1)] + rng.integers(0, 50, rng.integers(1, 30)).tolist())
    return build_tree(samples, share)


def dense(query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, scale: float | None = None) -> Tensor:
    """The same by torch's attention and a mask of who sees whom. Takes and gives what `prefix_tree_attention` does."""
    size = len(tree.tokens_U)
    sees = torch.zeros(size, size, dtype=torch.bool)
    for rows in tree.rows:
        at = torch.from_numpy(rows)
        sees[at[:, None], at[None, :]] |= torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=sees, scale=scale)
    return out.transpose(1, 2)


def compare(tree: PrefixTree, heads: int, kv_heads: int, scale: float | None = None) -> None:
    torch.manual_seed(len(tree.tokens_U))
    size, dim = len(tree.tokens_U), 8
    shapes = [(1, heads, size, dim), (1, kv_heads, size, dim), (1, kv_heads, size, dim)]
    ours = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    out, _ = prefix_tree_attention(torch.nn.Module(), *ours, None, tree=tree, scaling=scale)
    expected = dense(*theirs, tree, scale)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", range(6))
def test_random_trees_with_grouped_queries_equal_a_dense_mask(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "TILE", 5)  # tiles end within segments, at their ends, and before their first token
    compare(random_tree(seed), heads=6, kv_heads=2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 1)])
def test_any_grouping_of_heads_equals_a_dense_mask(heads: int, kv_heads: int):
    compare(random_tree(11), heads, kv_heads)


def test_a_segment_of_several_whole_tiles_equals_a_dense_mask():
    prompt = list(range(300))
    compare(build_tree([prompt + [1] * 530, prompt + [2] * 257, prompt[:290]]), heads=3, kv_heads=1)


def test_side_by_side_samples_do_not_see_each_other():
    compare(random_tree(3, share=False), heads=4, kv_heads=2)


def test_the_model_s_own_scale_is_used():
    compare(random_tree(4), heads=2, kv_heads=1, scale=0.3)
