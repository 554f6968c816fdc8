"""`rollout.mode`: how old an episode's weights may be, and what an interruption leaves; on real workers with fake engines."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import TaudojoError
from envs.types import AgentTurn
from rollouts.engines.base import EngineConfig
from rollouts.engines.fake import FakeScript
from rollouts.scheduler import RolloutPool
from rollouts.store import TrajectoryStore
from rollouts.trajectory import Trajectory
from training.compose import load
from training.config import AlgorithmSection, GRPOSection, RolloutSection, TrackingSection
from training.learner.base import Sample
from training.run import Interrupted, RunFolder
from training.stages.ahead import Ahead
from training.stages.grpo import Parts, requests_at, run_grpo
from training.sync import SyncReport
from training.tracking import Tracker

ASYNC = RolloutSection(mode="async", max_staleness=2)
ONE_STEP_OFF = RolloutSection(mode="one_step_off")
SYNC = RolloutSection()
SETTINGS = GRPOSection(steps=5, tasks_per_step=2, samples_per_task=3, drop_flat_groups=False, checkpoint_steps=1)


# -- admission alone


class Engines:
    """Plays a step in `seconds` of it, and notes the weights that it began and ended with."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self.version, self.in_flight = 0, 0
        self.begun: list[tuple[int, int]] = []  # step, and how many steps had been trained
        self.stop = threading.Event()

    def play(self, step: int) -> tuple[int, int, int]:
        with self._lock:
            begun = self.version
            self.begun.append((step, begun))
            self.in_flight += 1
        self.stop.wait(self._seconds[step % len(self._seconds)])
        with self._lock:
            self.in_flight -= 1
        return step, begun, self.version


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from(["sync", "one_step_off", "async"]),
    staleness=st.integers(1, 4),
    playing_ms=st.lists(st.integers(0, 12), min_size=1, max_size=7),
    updating_ms=st.lists(st.integers(0, 8), min_size=1, max_size=5),
)
def test_whatever_takes_how_long_no_step_is_older_than_its_mode_allows(
    mode: Any, staleness: int, playing_ms: list[int], updating_ms: list[int]
):
    steps = 9
    engines = Engines([ms / 1000 for ms in playing_ms])
    rollout = RolloutSection(mode=mode, max_staleness=staleness)
    bound = {"sync": 0, "one_step_off": 1, "async": staleness}[mode]
    with Ahead(engines.play, rollout, end=steps) as ahead:
        for step in range(steps):
            played, begun, _ = ahead.take(step)
            assert played == step
            assert step - begun <= bound
            if mode == "one_step_off" and step:
                assert step - begun == 1
            time.sleep(updating_ms[step % len(updating_ms)] / 1000)
            ahead.settle()
            if mode != "async":
                assert engines.in_flight == 0
            engines.version += 1
            ahead.trained()
    assert [step for step, _ in sorted(engines.begun)] == list(range(steps))  # each once
    assert all(step <= trained + bound for step, trained in engines.begun)


def test_at_the_end_nothing_is_in_flight_and_what_was_not_taken_is_forgotten():
    engines, forgotten = Engines([0.0, 600.0, 600.0]), list[int]()
    with Ahead(engines.play, ASYNC, cancel=engines.stop.set, forget=forgotten.append) as ahead:
        ahead.take(0)
    assert engines.stop.is_set() and engines.in_flight == 0
    assert forgotten == [1, 2]


def test_an_error_of_a_step_comes_out_where_the_step_is_taken():
    def play(step: int) -> int:
        if step == 1:
            raise TaudojoError("the customer's endpoint is gone")
        return step

    with Ahead(play, ONE_STEP_OFF) as ahead:
        assert ahead.take(0) == 0
        ahead.settle()
        ahead.trained()
        with pytest.raises(TaudojoError, match="endpoint is gone"):
            ahead.take(1)


# -- GRPO


class Learner:
    """Updates in a random time. `on_update` hears the number of updates so far."""

    def __init__(self, on_update: Callable[[int], None] = lambda number: None) -> None:
        self.updates = 0
        self._on_update, self._random = on_update, random.Random(3)

    def update(self, batch: Sequence[Sample], loss: Any, lr: float, temperature: float = 1.0) -> dict[str, float]:
        self._on_update(self.updates)
        self.updates += 1
        time.sleep(self._random.uniform(0.05, 0.3))
        return {"loss": 1.0, "tokens": 2.0 * len(batch), "unique_tokens": 2.0 * len(batch), "seconds": 0.5}

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        (folder / "state.json").write_text(json.dumps(dict(state)))


class Sync:
    """Gives the pool's engines a new version."""

    def __init__(self, pool: RolloutPool) -> None:
        self._pool, self.version = pool, 0

    def run(self) -> SyncReport:
        self.version += 1
        seconds = self._pool.load_weights(ray.put(np.zeros(8, np.uint8)), self.version)
        self._pool.score([[1, 2, 3]])
        return SyncReport(self.version, seconds, 0.0, 0.0, 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(load(["+experiment=smoke", f"output_dir={tmp_path}"]))


@pytest.fixture(scope="module")
def start(cluster: None, world: Any, world_config: Any) -> Iterator[Callable[[], RolloutPool]]:
    """Starts two workers whose engines write a question in about 0.2 seconds, four in an episode."""
    pools: list[RolloutPool] = []
    said = ("Could you give me your email?", "What is your order number?", "May I have your name and zip code?")
    script = FakeScript([world.chat.assistant(AgentTurn(text)) for text in said], token_s=0.02, jitter=1.0)
    short = replace(world_config, limits=replace(world_config.limits, max_steps=4))

    def start() -> RolloutPool:
        pools.append(RolloutPool.start(short, EngineConfig(script.model_path), workers=2, max_concurrent=16))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def pool(start: Callable[[], RolloutPool]) -> RolloutPool:
    return start()


@pytest.fixture
def play(task_sets: Any) -> Callable[..., int]:
    """GRPO with this pool, in this mode, as a process that begins here does it."""

    def play(
        folder: RunFolder, pool: RolloutPool, rollout: RolloutSection, learner: Any = None, stop: Any = None, **fields: Any
    ) -> int:
        store = pool.store = TrajectoryStore(folder.path / "trajectories")
        sync: Any = Sync(pool)
        sync.run()
        return run_grpo(
            SETTINGS.model_copy(update=fields),
            AlgorithmSection(),
            2,
            task_sets.grpo,
            Parts(pool, learner or Learner(), sync, rollout=rollout),
            store,
            folder,
            Tracker(folder.path, TrackingSection(mode="none"), "test", {}),
            stop or type("NoStop", (), {"raised": False})(),
        )

    return play


def stored(folder: RunFolder, steps: int = 5) -> list[list[Trajectory]]:
    store = TrajectoryStore(folder.path / "trajectories")
    return [store.read("grpo", step) for step in range(steps)]


def metrics_of(folder: RunFolder, name: str) -> list[float]:
    return [json.loads(line)["metrics"][name] for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def identities(played: Sequence[Sequence[Trajectory]]) -> list[list[tuple[str, int]]]:
    return [[(t.transcript.task_id, t.seed) for t in of_step] for of_step in played]


@pytest.fixture
def expected(task_sets: Any) -> list[list[tuple[str, int]]]:
    return [[(r.task.id, r.seed) for r in requests_at(SETTINGS, task_sets.grpo, step, seed=2)] for step in range(5)]


def assert_spans_are_whole(trajectory: Trajectory) -> None:
    """Every sampled token has exactly one version, and versions only grow."""
    versions: list[int] = []
    for segment in trajectory.segments:
        stamped = [at for start, stop, _ in segment.versions for at in range(start, stop)]
        assert stamped == [at for at, own in enumerate(segment.loss_mask) if own]
        versions += [version for _, _, version in segment.versions]
    assert versions == sorted(versions)


def test_async_tokens_are_never_older_than_the_bound_and_turns_change_weights_midway(
    pool: RolloutPool, play: Callable[..., int], folder: RunFolder, expected: Any
):
    assert play(folder, pool, ASYNC) == 5
    assert metrics_of(folder, "staleness/discarded") == [0.0] * 5
    assert max(metrics_of(folder, "staleness/max")) in (1.0, 2.0)
    played = stored(folder)
    assert identities(played) == expected
    swapped = 0
    for step, trajectories in enumerate(played):
        for trajectory in trajectories:
            assert_spans_are_whole(trajectory)
            assert all(step + 1 - 2 <= version <= step + 1 for version in trajectory.tokens_by_version)  # trained with step + 1
            swapped += sum(a[1] == b[0] for s in trajectory.segments for a, b in pairwise(s.versions))
    assert swapped > 0  # spans that go on where another ended
    assert max(metrics_of(folder, "staleness/mixed")) > 0


def test_one_step_off_episodes_are_played_with_the_weights_before(
    pool: RolloutPool, play: Callable[..., int], folder: RunFolder, expected: Any
):
    assert play(folder, pool, ONE_STEP_OFF) == 5
    played = stored(folder)
    assert identities(played) == expected
    versions = [{v for t in of_step for v in t.tokens_by_version} for of_step in played]
    assert versions == [{1}, {1}, {2}, {3}, {4}]
    assert metrics_of(folder, "staleness/max") == metrics_of(folder, "staleness/mean") == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert metrics_of(folder, "staleness/mixed") == [0.0] * 5


def test_a_mode_changes_when_episodes_are_played_not_what_is_played(pool: RolloutPool, play: Callable[..., int], tmp_path: Path):
    tokens = []
    for rollout in (SYNC, ASYNC):
        folder = RunFolder.create(load(["+experiment=smoke", f"output_dir={tmp_path}"]))
        play(folder, pool, rollout, steps=3)
        tokens.append([[s.token_ids for t in of_step for s in t.segments] for of_step in stored(folder, 3)])
        if rollout is SYNC:
            assert [{v for t in of_step for v in t.tokens_by_version} for of_step in stored(folder, 3)] == [{1}, {2}, {3}]
            idle, step = metrics_of(folder, "seconds/engines_idle"), metrics_of(folder, "seconds/step")
            assert all(0 < i < s for i, s in zip(idle, step, strict=True))
    assert tokens[0] == tokens[1]


@pytest.mark.slow
def test_a_killed_worker_costs_an_async_run_nothing_but_time(
    start: Callable[[], RolloutPool], play: Callable[..., int], folder: RunFolder, expected: Any
):
    pool = start()
    victim = pool._workers[0]

    def kill(number: int) -> None:
        if number == 1:
            ray.kill(victim)

    assert play(folder, pool, ASYNC, Learner(kill)) == 5
    played = stored(folder)
    assert identities(played) == expected
    assert max(t.attempts for of_step in played for t in of_step) == 2
    assert max(metrics_of(folder, "staleness/max")) <= 2.0
    assert metrics_of(folder, "staleness/discarded") == [0.0] * 5
    assert victim not in pool._workers


@pytest.mark.parametrize("rollout", [ONE_STEP_OFF, ASYNC], ids=lambda r: r.mode)
def test_ctrl_c_ends_what_is_in_flight_and_a_resumed_run_trains_each_step_once(
    pool: RolloutPool, play: Callable[..., int], folder: RunFolder, expected: Any, rollout: RolloutSection
):
    stop = type("Stop", (), {"raised": False})()

    def ctrl_c(number: int) -> None:
        stop.raised = number == 1

    with pytest.raises(Interrupted):
        play(folder, pool, rollout, Learner(ctrl_c), stop)
    assert pool._round is None
    assert identities(stored(folder)) == [*expected[:2], [], [], []]  # what was played ahead is forgotten
    resumed, _ = RunFolder.resume(folder.path)
    assert (resumed.state.checkpoint, resumed.state.step) == ("checkpoint-grpo-00002", 2)
    assert play(resumed, pool, rollout) == 5
    assert identities(stored(folder)) == expected
    assert metrics_of(folder, "staleness/max")[2] == 0.0  # of the first step after the resume
    assert [json.loads(line)["step"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()] == list(range(5))


def test_groups_that_refill_a_step_are_appended_to_its_file(
    pool: RolloutPool, play: Callable[..., int], folder: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    """All of the fake engine's episodes score the same, so every group is flat."""

    def rewritten(*_: Any) -> None:
        raise AssertionError("the step's file was written anew")

    monkeypatch.setattr(TrajectoryStore, "_replace", rewritten)
    play(folder, pool, SYNC, steps=1, refill=3, drop_flat_groups=True)
    (played,) = stored(folder, 1)
    assert [t.group for t in played] == [group for group in range(5) for _ in range(3)]


# -- configuration


def test_what_cannot_go_together_is_told():
    with pytest.raises(TaudojoError, match=r"rollout\.mode=async plays while the learner works.*set rollout\.mode=sync"):
        load(["rollout.mode=async", "deterministic=true"])
    with pytest.raises(TaudojoError, match=r"which algorithm\.tis_cap corrects"):
        load(["rollout.mode=one_step_off", "algorithm.tis_cap=null"])
    assert load(["rollout.mode=async", "rollout.max_staleness=3"]).rollout.steps_ahead == 3
    assert (SYNC.steps_ahead, ONE_STEP_OFF.steps_ahead) == (0, 1)
