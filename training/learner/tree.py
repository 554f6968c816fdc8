"""Prefix trees: every token that several trajectories share is computed once.

Episodes open with the same system prompt and group members share their first turns, so a batch is laid out as a trie:
a flat row of unique tokens cut into *segments* (runs without a branch), each with the chain of segments above it.
Positions are depths in the trie; attention looks at ancestors only (`attention.py`); per-trajectory log-probabilities are
gathered from the row, so a loss never sees the tree.

Only prefixes of whole trajectories are merged, therefore every number is the same as without the tree, to rounding.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Segment:
    """Row positions `[start, stop)`; `ancestors` are the segment numbers above it, root first."""

    start: int
    stop: int
    ancestors: tuple[int, ...]


@dataclass(frozen=True)
class PrefixTree:
    """`tokens_U`, `positions_U`: the row of unique tokens and their depths. `rows[i]` maps sample i's tokens to the row."""

    tokens_U: np.ndarray
    positions_U: np.ndarray
    segments: tuple[Segment, ...]
    rows: tuple[np.ndarray, ...]
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def derived(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What an attention kernel makes of the tree, made once for all layers."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]

    @cached_property
    def ends_U(self) -> np.ndarray:
        """For each row the end of the subtree below its segment: exactly the rows from itself up to there see it."""
        ends = [segment.stop for segment in self.segments]
        for segment in self.segments:
            for above in segment.ancestors:
                ends[above] = max(ends[above], segment.stop)
        return np.repeat(ends, [segment.stop - segment.start for segment in self.segments])

    @cached_property
    def visible_pairs(self) -> int:
        """Attention (query, key) pairs: Σ over unique tokens of depth + 1."""
        return int((self.positions_U + 1).sum())


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two token arrays."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def build_tree(sequences: Sequence[Sequence[int]], share: bool = True) -> PrefixTree:
    """The trie of `sequences`, laid out depth first. `share=False` lays them side by side (plain packing).

    Sorting makes equal prefixes neighbours; each sequence then branches off the previous one's path at their common
    prefix, which is the trie in depth-first order without building nodes. O(total tokens) after the sort.
    """
    arrays = [np.asarray(s, dtype=np.int64) for s in sequences]
    if any(len(a) == 0 for a in arrays):
        raise ValueError("a sample without tokens cannot be trained on")
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].astype(">i8").tobytes()) if share else list(range(len(arrays)))

    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    rows: list[np.ndarray] = [np.empty(0, np.int64)] * len(arrays)
    runs: list[list[int]] = []  # [start, stop, parent run or -1, depth of start]
    path: list[int] = []  # runs from the root to the end of the previous sequence
    size = 0
    previous: np.ndarray | None = None
    previous_rows = np.empty(0, np.int64)
    for i in order:
        current = arrays[i]
        shared = common_prefix(previous, current) if share and previous is not None else 0
        while path and runs[path[-1]][3] >= shared:
            path.pop()
        if path:
            top = runs[path[-1]]
            end = top[0] + (shared - top[3])
            if end < top[1]:  # the branch point lies inside a run: split it, the lower half keeps the children
                lower = len(runs)
                runs.append([end, top[1], path[-1], shared])
                for run in runs[:lower]:
                    if run[2] == path[-1]:
                        run[2] = lower
                top[1] = end
        fresh = len(current) - shared
        if fresh:
            runs.append([size, size + fresh, path[-1] if path else -1, shared])
            path.append(len(runs) - 1)
            tokens.append(current[shared:])
            positions.append(np.arange(shared, len(current)))
        rows[i] = np.concatenate([previous_rows[:shared], np.arange(size, size + fresh)])
        size += fresh
        previous, previous_rows = current, rows[i]
    return PrefixTree(np.concatenate(tokens), np.concatenate(positions), _segments(runs), tuple(rows))


def _segments(runs: list[list[int]]) -> tuple[Segment, ...]:
    """Runs in row order, with their chains of ancestors."""
    order = sorted(range(len(runs)), key=lambda r: runs[r][0])
    number = {run: n for n, run in enumerate(order)}
    segments: list[Segment] = []
    for run in order:
        start, stop, parent, _ = runs[run]
        above = () if parent < 0 else (*segments[number[parent]].ancestors, number[parent])
        segments.append(Segment(start, stop, above))
    return tuple(segments)


def pack(sequences: Sequence[Sequence[int]], budget: int, share: bool = True) -> list[list[int]]:
    """Splits samples into micro-batches of at most `budget` unique tokens (a longer sample stands alone).

    Returns lists of sample numbers, each in ascending order. Neighbours in sorted order share most, so micro-batches are runs of
    that order.
    """
    if budget < 1:
        raise ValueError(f"micro_batch_tokens must be positive, got {budget}")
    return _runs(_lined_up(sequences, share), budget)


def deal(sequences: Sequence[Sequence[int]], ranks: int, share: bool = True) -> list[list[int]]:
    """Splits samples over ranks: one list of sample numbers for each, in ascending order; some are empty where samples are few.

    Shares are runs of the sorted order too, or the members of a group would go to several ranks and each would compute their
    trunk. They are cut so that the busiest rank computes as few unique tokens as it can. Without sharing, samples go round by
    length.
    """
    if not share:
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        return [sorted(order[rank::ranks]) for rank in range(ranks)]
    lined_up = _lined_up(sequences, share)
    lengths = [length for _, length, _ in lined_up]
    budgets = range(max(lengths, default=0), sum(lengths) + 1)
    least = budgets[bisect_left(budgets, True, key=lambda budget: len(_runs(lined_up, budget)) <= ranks)]
    shares = _runs(lined_up, least)
    return shares + [[] for _ in range(ranks - len(shares))]


def _lined_up(sequences: Sequence[Sequence[int]], share: bool) -> list[tuple[int, int, int]]:
    """(sample number, its tokens, how many of them the one before shares), sorted where prefixes are shared."""
    arrays = [np.asarray(s, dtype=np.int64) for s in sequences]
    if not share:
        return [(i, len(array), 0) for i, array in enumerate(arrays)]
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].astype(">i8").tobytes())
    shared = [0, *(common_prefix(arrays[a], arrays[b]) for a, b in pairwise(order))]
    return [(i, len(arrays[i]), common) for i, common in zip(order, shared, strict=False)]


def _runs(lined_up: Sequence[tuple[int, int, int]], budget: int) -> list[list[int]]:
    """Runs of neighbours within a budget of unique tokens, each as long as it can be."""
    runs: list[list[int]] = []
    used = 0
    for i, length, shared in lined_up:
        cost = length - shared
        if not runs or used + cost > budget:
            runs.append([])
            used, cost = 0, length
        runs[-1].append(i)
        used += cost
    return [sorted(run) for run in runs]
