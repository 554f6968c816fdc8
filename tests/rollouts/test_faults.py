"""What goes wrong around a worker: it dies, it hangs, its engine has other weights, an episode ends it every time.

The workers here are real Ray actors with the real reporting; only their episodes are made up, so that they start at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray

from envs.errors import TaudojoError
from envs.types import StopReason, Task, Transcript
from rewards.breakdown import RewardBreakdown
from rewards.metrics import EpisodeMetrics
from rollouts import scheduler
from rollouts.engines.base import EngineConfig, EngineFailed
from rollouts.engines.fake import FakeEngine
from rollouts.scheduler import RolloutPool
from rollouts.store import TrajectoryStore
from rollouts.trajectory import EpisodeRequest, TokenSegment, Trajectory
from rollouts.watchdog import Place, overdue
from rollouts.worker import Order, Report, RolloutWorker

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


FAILS, HANGS, TAKES_3_S = 66, 77, 88  # versions of weights


class LightWorker(RolloutWorker):
    """Episodes do as their task's id says: `die`, `die-once`, `fail`, `break`, `block`, `wait`, `wait-long`; others just end.

    New weights do as their version says. Where `world` is "slow", worker 1 does not get up.
    """

    def __init__(self, world: Any, engine: Any, number: int = 0) -> None:
        self.number, self._slow = number, world == "slow" and number == 1
        self._engine = FakeEngine(EngineConfig("fake:"))
        self._live, self._played, self._listener, self._first = {}, {}, 0, 0
        self._news, self._looked = asyncio.Event(), time.monotonic()

    async def ready(self) -> int:
        await asyncio.sleep(60.0 * self._slow)
        return await super().ready()

    async def load_weights(self, safetensors: Any, version: int, **settings: Any) -> None:
        if version == FAILS and self.number == 0:
            raise EngineFailed("the engine's process is gone")
        if version == HANGS and self.number == 0:
            await asyncio.sleep(60.0)
        if version == TAKES_3_S and self.number > 1:
            await asyncio.sleep(3.0)
        await super().load_weights(safetensors, version, **settings)

    async def play(self, request: EpisodeRequest, place: Place | None = None) -> Trajectory:
        told = request.task.id if request.policy == "engine" else ""
        assert place is not None
        if told == "die" or (told == "die-once" and self.number == 0):
            await asyncio.sleep(0.3)
            os._exit(1)
        if told == "fail" and self.number < 2:
            raise EngineFailed("the engine is out of order")
        if told == "break":
            raise TaudojoError("the task does not fit")
        if told == "block" and self.number == 0:
            time.sleep(60)
        if told in ("wait", "wait-long"):
            place.waits_for("engine")
            await asyncio.sleep(2.0 if told == "wait" else 60.0)
        await asyncio.sleep(0.02)
        stop = StopReason.ENGINE_ERROR if request.policy == "none" else StopReason.USER_STOP
        segment = TokenSegment([1, 2], [False, True], [0.0, -1.0], [(1, 2, self._engine.weight_version)])
        metrics = EpisodeMetrics(request.task.id, "x", 1, 1, 1.0, 1.0, 1.0, True, False, True, True, 1.0, 1.0, stop.value)
        transcript = Transcript(request.task.id, "retail", (), stop)
        reward = RewardBreakdown(1.0)
        return Trajectory(transcript, "x", [segment], reward, metrics, request.stage, request.step, request.group, request.seed)


@pytest.fixture
def start(cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RolloutPool]]:
    monkeypatch.setattr(scheduler, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(scheduler, "STANDSTILL_S", 0.5)
    pools: list[RolloutPool] = []

    def start(workers: int, max_concurrent: int = 4, world: Any = None) -> RolloutPool:
        config: Any = EngineConfig("fake:", cores=1)
        pools.append(RolloutPool.start(world, config, workers=workers, max_concurrent=max_concurrent, worker_class=LightWorker))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


def episodes(*tasks: str) -> list[EpisodeRequest]:
    return [EpisodeRequest(Task("retail", {"id": name}), seed=n, stage="test", group=n) for n, name in enumerate(tasks)]


def ended(pool: RolloutPool, asked: list[EpisodeRequest]) -> list[Trajectory]:
    """All of them, each once, in order."""
    done: list[Trajectory] = []
    played = pool.play(asked, done.append)
    assert [(t.transcript.task_id, t.seed) for t in played] == [(r.task.id, r.seed) for r in asked]
    assert Counter(t.seed for t in done) == Counter(r.seed for r in asked)
    return played


def test_a_worker_that_dies_is_replaced_and_its_episodes_are_played_elsewhere(start: Callable[..., RolloutPool]):
    pool = start(1)
    played = ended(pool, episodes("die-once", *["x"] * 20))
    assert {t.transcript.stop_reason for t in played} == {StopReason.USER_STOP}
    assert played[0].attempts == 2 and played[0].worker == 1
    assert {t.worker for t in ended(pool, episodes("x", "x"))} == {1}


def test_a_rebuilt_worker_has_the_current_weights(start: Callable[..., RolloutPool]):
    pool = start(1)
    pool.load_weights(ray.put(np.zeros(8, np.uint8)), version=5)
    pool.score([[1, 2, 3]])
    played = ended(pool, episodes("die-once", "x"))
    assert {v for t in played for s in t.segments for _, _, v in s.versions} == {5}


def test_weights_for_a_rebuilt_worker_are_published_anew_where_there_is_a_source(start: Callable[..., RolloutPool]):
    pool = start(1)
    published: list[Any] = []

    def publish() -> Any:
        published.append(ray.put(np.zeros(8, np.uint8)))
        return published[-1]

    pool.weights_source = publish
    pool.load_weights(publish(), version=2)
    assert pool._weights is None  # a copy of the model is not kept in memory
    ended(pool, episodes("die-once"))
    assert len(published) == 2


def test_a_rebuilt_worker_that_says_other_than_the_last_probe_is_not_taken(
    start: Callable[..., RolloutPool], monkeypatch: pytest.MonkeyPatch
):
    pool = start(1)
    pool.load_weights(ray.put(np.zeros(8, np.uint8)), version=5)
    pool.score([[1, 2, 3]])
    assert pool._probe is not None
    pool._probe[1][0][1:] = [-3.0, -3.0]
    with pytest.raises(TaudojoError, match=r"the last rollout worker is lost: .*does not have weight version 5"):
        pool.play(episodes("die-once"))


@pytest.mark.parametrize("version", [FAILS, HANGS])
def test_an_engine_that_is_lost_at_a_weight_sync_is_replaced(
    start: Callable[..., RolloutPool], monkeypatch: pytest.MonkeyPatch, version: int
):
    pool = start(2)
    monkeypatch.setattr(scheduler, "SYNC_TIMEOUT_S", 10.0)
    pool.load_weights(ray.put(np.zeros(8, np.uint8)), version)
    assert len(pool.score([[1, 2, 3]])) == 1
    played = ended(pool, episodes(*["wait"] * 12))
    assert {v for t in played for s in t.segments for _, _, v in s.versions} == {version}
    assert {t.worker for t in played} <= {1, 2}


def test_workers_that_are_lost_together_are_all_replaced(start: Callable[..., RolloutPool], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduler, "MAX_REBUILDS", 1)
    pool = start(3)
    for worker in pool._workers:
        ray.kill(worker)
    pool.load_weights(ray.put(np.zeros(8, np.uint8)), version=1)
    assert pool.workers == 3
    ended(pool, episodes("x", "x", "x"))


@pytest.mark.slow
def test_a_worker_that_does_not_get_up_is_given_up(start: Callable[..., RolloutPool], monkeypatch: pytest.MonkeyPatch):
    pool = start(1, world="slow")
    monkeypatch.setattr(scheduler, "START_TIMEOUT_S", 20.0)
    assert {t.worker for t in ended(pool, episodes("die-once"))} == {2}


def test_nobody_is_taken_for_dead_because_another_s_start_took_long(
    start: Callable[..., RolloutPool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    pool = start(2, max_concurrent=1)
    pool.load_weights(ray.put(np.zeros(8, np.uint8)), TAKES_3_S)
    monkeypatch.setattr(scheduler, "SILENCE_S", 2.0)
    with caplog.at_level(logging.WARNING):
        ended(pool, episodes("die-once", *["wait"] * 8))
    assert pool._started == 3
    assert "has not reported" not in caplog.text


def test_an_episode_that_ends_every_worker_is_given_up_and_the_others_are_played(
    start: Callable[..., RolloutPool], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scheduler, "MAX_ATTEMPTS", 2)
    played = ended(start(2), episodes("die", *["x"] * 10))
    assert [t.transcript.stop_reason for t in played] == [StopReason.ENGINE_ERROR] + [StopReason.USER_STOP] * 10
    assert not StopReason.ENGINE_ERROR.agent_at_fault
    assert played[0].attempts == 3


def test_engines_that_fail_are_replaced(start: Callable[..., RolloutPool]):
    played = ended(start(2), episodes("fail", "fail", "x"))
    assert {t.worker for t in played[:2]} <= {2, 3}


def test_workers_that_only_fail_end_the_run_with_a_sentence(start: Callable[..., RolloutPool], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduler, "MAX_REBUILDS", 1)
    with pytest.raises(TaudojoError, match=r"the last rollout worker is lost.*resume the run"):
        start(1).play(episodes("die"))


def test_a_worker_that_does_not_report_is_replaced_and_named(
    start: Callable[..., RolloutPool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(scheduler, "SILENCE_S", 2.0)
    pool = start(2, max_concurrent=1)
    with caplog.at_level(logging.WARNING):
        played = ended(pool, episodes("block", "x", "x"))
    assert played[0].worker > 0
    assert "rollout worker 0 has not reported" in caplog.text and "played again: block" in caplog.text


def test_what_stands_still_is_named_with_what_it_waits_for(start: Callable[..., RolloutPool], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        ended(start(1), episodes("wait", "x"))
    assert "rollout worker 0: task wait waits for the engine since" in caplog.text


def test_an_error_of_the_world_ends_the_round_and_leaves_nothing_running(start: Callable[..., RolloutPool]):
    pool = start(1)
    with pytest.raises(TaudojoError, match="the task does not fit") as error:
        pool.play(episodes("break", *["wait-long"] * 3))
    assert "Traceback" in "".join(error.value.__notes__)
    begin = time.monotonic()
    assert len(ended(pool, episodes("x"))) == 1
    assert time.monotonic() - begin < 30


def test_another_pool_may_go_on_with_the_same_workers(start: Callable[..., RolloutPool]):
    first = start(2)
    ended(first, episodes(*["x"] * 6))
    second = RolloutPool(first._workers, max_concurrent=4)
    ended(second, episodes(*["x"] * 6))
    ended(first, episodes(*["x"] * 6))


def orders(*numbers: int) -> list[Order]:
    (request,) = episodes("x")
    return [Order(number, request) for number in numbers]


def numbers(report: Report) -> list[int]:
    return [played.number for played in report.played]


def test_what_ended_is_told_until_it_was_received():
    async def run() -> list[list[int]]:
        worker = LightWorker(None, None)
        await worker.begin(orders(101, 102))
        lost = await worker.report(5.0, 60.0, 100)  # finds nobody who waits for it
        again = await worker.report(5.0, 60.0, 100)
        await worker.begin(orders(103))
        rest = await worker.report(5.0, 60.0, 100, numbers(again))
        return [numbers(r) for r in (lost, again, rest, await worker.report(0.1, 60.0, 200))]

    assert asyncio.run(run()) == [[101, 102], [101, 102], [103], []]


def test_a_report_that_an_earlier_round_asked_for_and_that_comes_late_takes_nothing_away():
    async def run() -> list[list[int]]:
        worker = LightWorker(None, None)
        current = asyncio.create_task(worker.report(5.0, 60.0, 200))
        await asyncio.sleep(0)
        late = asyncio.create_task(worker.report(5.0, 60.0, 100))
        await worker.begin(orders(201))
        return [numbers(r) for r in (await current, await late, await worker.report(5.0, 60.0, 200))]

    assert asyncio.run(run()) == [[], [201], [201]]


def test_what_was_dropped_is_not_begun_when_it_comes_late():
    async def run() -> list[int]:
        worker = LightWorker(None, None)
        await worker.begin(orders(101))
        await worker.drop(before=200)
        await worker.begin(orders(102, 201))
        return numbers(await worker.report(5.0, 60.0, 200))

    assert asyncio.run(run()) == [201]


def test_episodes_are_stored_as_they_end(start: Callable[..., RolloutPool], tmp_path: Any):
    pool = start(2)
    pool.store = store = TrajectoryStore(tmp_path)
    seen: list[int] = []
    played = pool.play(episodes(*["x"] * 9), lambda _: seen.append(len(store.read("test", 0))))
    assert seen == list(range(1, 10))
    assert [t.seed for t in store.read("test", 0)] == [t.seed for t in played]


def test_more_episodes_than_fit_wait_with_the_scheduler(start: Callable[..., RolloutPool]):
    assert len(ended(start(2, max_concurrent=3), episodes(*["x"] * 300))) == 300


def test_only_what_has_not_moved_is_overdue():
    old, new = Place("17"), Place("18")
    old.waits_for("customer")
    old.since -= 90
    (found,) = overdue([new, old], limit_s=60)
    assert str(found) == "task 17 waits for the customer since 90 s"
