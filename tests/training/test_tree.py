"""The prefix tree: what trajectories share is laid out once, and every trajectory is still there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.learner.tree import PrefixTree, Segment, build_tree, common_prefix, deal, pack

#: Few different tokens, so that prefixes are shared, repeated and contained in each other.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=8)


def prefixes(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}


def path(tree: PrefixTree, row: int) -> list[int]:
    """The rows that the token at `row` may look at, in order of depth."""
    segment = next(s for s in tree.segments if s.start <= row < s.stop)
    above = [tree.segments[a] for a in segment.ancestors]
    return [r for s in above for r in range(s.start, s.stop)] + list(range(segment.start, row + 1))


def test_a_tree_made_by_hand():
    tree = build_tree([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 6], [7]])
    assert tree.tokens_U.tolist() == [1, 2, 3, 4, 6, 5, 7]
    assert tree.positions_U.tolist() == [0, 1, 2, 3, 3, 2, 0]
    assert tree.segments == (
        Segment(0, 2, ()),
        Segment(2, 3, (0,)),
        Segment(3, 4, (0, 1)),
        Segment(4, 5, (0, 1)),
        Segment(5, 6, (0,)),
        Segment(6, 7, ()),
    )
    assert [rows.tolist() for rows in tree.rows] == [[0, 1, 2, 3], [0, 1, 5], [0, 1, 2, 4], [6]]
    assert tree.visible_pairs == 1 + 2 + 3 + 4 + 4 + 3 + 1


def test_equal_samples_and_samples_within_others_cost_nothing():
    tree = build_tree([[5, 6, 7], [5, 6], [5, 6, 7]])
    assert tree.tokens_U.tolist() == [5, 6, 7]
    assert [rows.tolist() for rows in tree.rows] == [[0, 1, 2], [0, 1], [0, 1, 2]]


@settings(deadline=None)
@given(SEQUENCES)
def test_every_prefix_is_there_once_and_every_sample_reads_itself(sequences: list[list[int]]):
    tree = build_tree(sequences)
    assert len(tree.tokens_U) == len(prefixes(sequences))
    assert [(s.start, s.stop) for s in tree.segments] == list(
        zip([0, *(s.stop for s in tree.segments[:-1])], [s.stop for s in tree.segments], strict=True)
    )
    for sequence, rows in zip(sequences, tree.rows, strict=True):
        assert tree.tokens_U[rows].tolist() == sequence
        assert tree.positions_U[rows].tolist() == list(range(len(sequence)))
        for depth, row in enumerate(rows):
            assert path(tree, row) == rows[: depth + 1].tolist()


@given(SEQUENCES)
def test_without_sharing_samples_lie_side_by_side(sequences: list[list[int]]):
    tree = build_tree(sequences, share=False)
    assert tree.tokens_U.tolist() == [token for s in sequences for token in s]
    assert tree.positions_U.tolist() == [depth for s in sequences for depth in range(len(s))]
    assert all(segment.ancestors == () for segment in tree.segments)
    assert np.concatenate(tree.rows).tolist() == list(range(len(tree.tokens_U)))


def test_a_sample_without_tokens_is_an_error():
    with pytest.raises(ValueError, match="without tokens"):
        build_tree([[1, 2], []])


def test_the_common_prefix_is_counted_in_tokens():
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert common_prefix(np.array([1, 2]), np.array([1, 2, 3])) == 2
    assert common_prefix(np.array([1]), np.array([2])) == 0


@given(SEQUENCES, st.integers(1, 24), st.booleans())
def test_micro_batches_hold_every_sample_once_within_the_budget(sequences: list[list[int]], budget: int, share: bool):
    batches = pack(sequences, budget, share)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sequences)))
    for batch in batches:
        cost = len(build_tree([sequences[i] for i in batch], share).tokens_U)
        assert cost <= budget or len(batch) == 1


def test_a_sample_longer_than_the_budget_stands_alone():
    assert sorted(map(sorted, pack([[1] * 3, [2] * 50, [3] * 3], budget=8))) == [[0], [1], [2]]
    assert pack([[1] * 3, [2] * 4], budget=8) == [[0, 1]]


def test_sharing_lets_more_samples_into_a_micro_batch():
    group = [[*range(20), answer] for answer in (31, 32, 33)]
    assert len(pack(group, budget=24)) == 1
    assert len(pack(group, budget=24, share=False)) == 3


def test_a_budget_below_one_token_is_an_error():
    with pytest.raises(ValueError, match="micro_batch_tokens"):
        pack([[1]], budget=0)


@given(SEQUENCES, st.integers(1, 5), st.booleans())
def test_every_sample_goes_to_one_rank(sequences: list[list[int]], ranks: int, share: bool):
    shares = deal(sequences, ranks, share)
    assert len(shares) == ranks
    assert sorted(i for numbers in shares for i in numbers) == list(range(len(sequences)))
    assert shares == deal(sequences, ranks, share)


def test_a_group_stays_on_one_rank():
    groups = [[[group, *range(20), 30 + member] for member in range(3)] for group in range(2)]
    dealt = deal([sample for members in zip(*groups, strict=True) for sample in members], ranks=2)
    assert dealt == [[0, 2, 4], [1, 3, 5]]


def test_ranks_get_about_the_same_number_of_unique_tokens():
    rng = np.random.default_rng(0)
    sequences = [[g, *range(40), *rng.integers(50, 99, 10 + 3 * m).tolist()] for g in range(5) for m in range(6)]
    costs = [len(build_tree([sequences[i] for i in numbers]).tokens_U) for numbers in deal(sequences, ranks=4)]
    alone = len(build_tree(sequences).tokens_U)
    assert max(costs) < 1.1 * sum(costs) / 4
    assert sum(costs) <= alone + 3 * 41  # at most one trunk more for every cut


def test_without_sharing_ranks_get_samples_by_length():
    assert deal([[1] * n for n in (1, 5, 3, 2)], ranks=2, share=False) == [[1, 3], [0, 2]]


def test_there_may_be_fewer_samples_than_ranks():
    assert deal([[1, 2]], ranks=3) == [[0], [], []]
    assert deal([], ranks=2) == [[], []]
