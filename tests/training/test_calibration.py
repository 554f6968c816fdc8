"""Rank correlation against values worked out by hand and against scipy's."""

from __future__ import annotations

import numpy as np
import pytest

from training.calibration import rank_correlation


def test_the_same_order_is_one_and_the_opposite_minus_one():
    assert rank_correlation([0.1, 0.2, 0.9], [-5.0, 0.0, 100.0]) == pytest.approx(1.0)
    assert rank_correlation([0.1, 0.2, 0.9], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)


def test_ties_share_their_mean_rank():
    # ranks 1 2 3 and 1.5 1.5 3: covariance 1.5, squares 2 and 1.5
    assert rank_correlation([0.1, 0.5, 0.9], [0.0, 0.0, 1.0]) == pytest.approx(1.5 / (2 * 1.5) ** 0.5)


@pytest.mark.parametrize(("a", "b"), [([1.0, 1.0], [0.0, 1.0]), ([0.0, 1.0], [0.5, 0.5]), ([], []), ([1.0], [1.0])])
def test_where_either_is_constant_there_is_none(a: list[float], b: list[float]):
    assert rank_correlation(a, b) is None


def test_it_is_scipy_s():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 30).astype(float), rng.integers(0, 2, 30).astype(float)
        assert rank_correlation(a.tolist(), b.tolist()) == pytest.approx(stats.spearmanr(a, b).statistic)
