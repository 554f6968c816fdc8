"""What the tests of the stages give them: a learner, a pool and a sync that remember, and episodes made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.types import StopReason, Task, Transcript
from rewards.breakdown import RewardBreakdown
from rewards.metrics import EpisodeMetrics
from rollouts.trajectory import EpisodeRequest, TokenSegment, Trajectory
from training.config import AlgorithmSection, TrackingSection
from training.learner.base import Sample
from training.run import RunFolder
from training.sync import SyncReport
from training.tracking import Tracker

SAMPLES = [Sample([i, i + 1], [False, True]) for i in range(10)]
ALGORITHM = AlgorithmSection()


class FakeStop:
    raised = False


class FakeLearner:
    """Remembers what it was asked. `on_update` hears the number of updates so far; it may fail or raise the stop flag."""

    def __init__(self, on_update: Callable[[int], None] = lambda number: None) -> None:
        self.batches: list[list[Sample]] = []
        self.rates: list[float] = []
        self.asked: list[str] = []
        self.temperatures: list[float] = []
        self._on_update = on_update

    def update(self, batch: Sequence[Sample], loss: Any, lr: float, temperature: float = 1.0) -> dict[str, float]:
        self._on_update(len(self.batches))
        self.batches.append(list(batch))
        self.rates.append(lr)
        self.temperatures.append(temperature)
        return {"loss": 1.0, "tokens": 2.0 * len(batch), "unique_tokens": 2.0 * len(batch), "seconds": 0.5}

    def logprobs(self, batch: Sequence[Sample], reference: bool = False, temperature: float = 1.0) -> list[list[float]]:
        self.asked.append("reference" if reference else "old")
        self.temperatures.append(temperature)
        return [[-2.0 if reference else -1.0] * len(s.token_ids) for s in batch]

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        (folder / "state.json").write_text(json.dumps(dict(state)))


class FakeSync:
    version = 0

    def __init__(self) -> None:
        self.runs = 0

    def run(self) -> SyncReport:
        self.runs += 1
        return SyncReport(self.runs, 0.1, 0.2, 1e-5, 1e-4)


class FakePool:
    """Plays a request as `score` of it says, in no time."""

    workers, places = 1, 64

    def __init__(self, score: Callable[[EpisodeRequest], float] = lambda request: float(request.seed % 7)) -> None:
        self.played: list[EpisodeRequest] = []
        self._score = score

    def play(self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None = None) -> list[Trajectory]:
        self.played += requests
        done = [trajectory(self._score(r), r.group, task_id=r.task.id) for r in requests]
        for one in done:
            if on_done:
                on_done(one)
        return done


def task(number: int) -> Task:
    return Task("retail", {"id": f"task-{number}", "user_scenario": {"instructions": "Anything."}})


def trajectory(
    reward: float, group: int, stop: StopReason | None = StopReason.USER_STOP, task_id: str = "task", segments: int = 1
) -> Trajectory:
    tokens = [TokenSegment([5, 6, 7], [False, True, True], [0.0, -1.0, -2.0], [(1, 3, 0)])] * segments
    metrics = EpisodeMetrics(task_id, "lookup", 1, 1, 1.0, 1.0, 1.0, True, False, True, True, 1.0, reward, stop and stop.value)
    transcript = Transcript(task_id, "retail", (), stop)
    return Trajectory(transcript, "lookup", tokens, RewardBreakdown(reward), metrics, "grpo", 0, group, 0)


def steps_of_batches(learner: FakeLearner) -> list[list[int]]:
    """The batches, by their samples' first tokens."""
    return [[s.token_ids[0] for s in batch] for batch in learner.batches]


def tracker(folder: RunFolder) -> Tracker:
    return Tracker(folder.path, TrackingSection(mode="none"), "test", {})


def metrics_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


class Broken(Exception):
    pass


def break_at(number: int) -> Callable[[int], None]:
    def on_update(now: int) -> None:
        if now == number:
            raise Broken

    return on_update
