"""The weight-sync probe: what it compares, what it lets pass, what it says. Real engines: tests/rollouts/test_engine.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from envs.errors import TaudojoError
from training.learner.base import Sample
from training.sync import TOLERANCE, WeightSync

PROMPTS = [[5, 6, 7, 8], [9, 10]]
SCORES = [[0.0, -1.0, -2.0, -3.0], [0.0, -4.0]]


class FakeLearner:
    published_bytes = 2**19

    def publish(self) -> str:
        return "weights"

    def logprobs(self, batch: Sequence[Sample]) -> list[list[float]]:
        assert [list(s.token_ids) for s in batch] == PROMPTS
        return SCORES


class FakePool:
    """Engines that are off by `gaps` on every token but the first, which nothing predicts."""

    def __init__(self, *gaps: float) -> None:
        self.gaps, self.loads = gaps, [] if gaps else None

    def load_weights(self, weights: Any, version: int) -> float:
        assert self.loads is not None
        self.loads.append((weights, version))
        return 0.0

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        assert [list(p) for p in prompts] == PROMPTS
        return [[[99.0, *(x + gap for x in row[1:])] for row in SCORES] for gap in self.gaps]


def sync(*gaps: float, dtype: str = "float32") -> tuple[WeightSync, FakePool]:
    pool = FakePool(*gaps)
    return WeightSync(FakeLearner(), pool, PROMPTS, dtype), pool  # type: ignore[arg-type]


def test_every_sync_is_a_new_version_and_is_probed():
    worked, pool = sync(1e-4)
    assert [worked.run().version, worked.run().version] == [1, 2]
    assert pool.loads == [("weights", 1), ("weights", 2)]


def test_the_report_is_of_the_worst_engine():
    report = sync(1e-4, -5e-4, 2e-4)[0].run()
    assert (report.mean_gap, report.max_gap) == pytest.approx((5e-4, 5e-4))
    assert report.metrics().keys() == {"sync/transfer_s", "sync/probe_s", "sync/mean_gap", "sync/max_gap", "sync/mib"}
    assert report.mib == 0.5


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_gap_beyond_the_tolerance_stops_the_run_and_names_the_worker(dtype: str):
    limit = TOLERANCE[dtype]
    sync(0.9 * limit, dtype=dtype)[0].run()
    with pytest.raises(
        TaudojoError, match=r"weight sync 1: rollout worker 1 does not have the learner's weights .* 4 probe tokens"
    ):
        sync(0.0, 1.1 * limit, dtype=dtype)[0].run()


def test_numbers_that_are_none_never_pass():
    with pytest.raises(TaudojoError, match="does not have the learner's weights"):
        sync(float("nan"))[0].run()
