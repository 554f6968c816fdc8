"""The rollout pool over Ray with fake engines: every episode comes back once, in order, whatever happens to its worker."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from envs.errors import TaudojoError
from envs.types import AgentTurn
from rollouts.engines.base import EngineConfig
from rollouts.engines.fake import FakeEngine, FakeScript
from rollouts.scheduler import RolloutPool
from rollouts.trajectory import EpisodeRequest, Trajectory
from rollouts.worker import build_engine

StartWorkers = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def answers(world: Any) -> list[list[int]]:
    """What the fake policy may say: questions, so that episodes take several turns."""
    said = ("Could you give me your email?", "What is your order number?", "May I have your name and zip code?")
    return [world.chat.assistant(AgentTurn(text)) for text in said]


@pytest.fixture(scope="module")
def workers(cluster: None, world_config: Any, answers: list[list[int]]) -> Iterator[list[Any]]:
    """Two sound rollout workers whose engines take 0.05 to 0.2 seconds a turn."""
    script = FakeScript(answers, latency_s=0.05, jitter=3.0)
    pool = RolloutPool.start(world_config, EngineConfig(script.model_path), workers=2)
    yield list(pool._workers)
    pool.close()


@pytest.fixture
def start(cluster: None, world_config: Any, answers: list[list[int]]) -> Iterator[StartWorkers]:
    """Starts workers of a test's own with a script; closed after it."""
    pools: list[RolloutPool] = []

    def start(number: int = 1, **settings: Any) -> list[Any]:
        engine = EngineConfig(FakeScript(answers, **settings).model_path)
        pools.append(RolloutPool.start(world_config, engine, workers=number))
        return list(pools[-1]._workers)

    yield start
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def requests(task_sets: Any) -> list[EpisodeRequest]:
    return [EpisodeRequest(task, seed=n, stage="test", group=n) for n, task in enumerate(task_sets.heldout)]


def identities(trajectories: list[Trajectory]) -> list[tuple[str, int]]:
    return [(t.transcript.task_id, t.group) for t in trajectories]


def expected(requests: list[EpisodeRequest]) -> list[tuple[str, int]]:
    return [(r.task.id, r.group) for r in requests]


def test_a_fake_engine_is_chosen_by_its_model_path():
    script = FakeScript(answers=[[1, 2]], latency_s=0.5, fail_at=3)
    engine = build_engine(EngineConfig(script.model_path))
    assert isinstance(engine, FakeEngine)
    assert engine.script == replace(script, answers=[[1, 2]])


def test_results_come_in_the_order_of_the_requests(workers: list[Any], requests: list[EpisodeRequest]):
    done: list[Trajectory] = []
    trajectories = RolloutPool(workers, max_concurrent=4).play(requests, done.append)
    assert identities(trajectories) == expected(requests)
    assert Counter(identities(done)) == Counter(expected(requests))
    assert all(t.transcript.stop_reason for t in trajectories)


def test_episodes_do_not_depend_on_which_worker_plays_them(workers: list[Any], requests: list[EpisodeRequest]):
    alone = RolloutPool(workers[:1], max_concurrent=64).play(requests)
    together = RolloutPool(workers, max_concurrent=2).play(requests)
    assert [t.segments for t in together] == [t.segments for t in alone]


def test_many_episodes_wait_for_their_engine_at_once(workers: list[Any], requests: list[EpisodeRequest]):
    begin = time.monotonic()
    trajectories = RolloutPool(workers[:1], max_concurrent=64).play(requests)
    assert time.monotonic() - begin < 0.5 * sum(t.timings["generate"] for t in trajectories)


def test_lock_step_episodes_come_in_order_in_parts_of_the_pool_s_size(workers: list[Any], requests: list[EpisodeRequest]):
    pool = RolloutPool(workers, max_concurrent=5, lockstep=True)
    done: list[Trajectory] = []
    trajectories = pool.play(requests, done.append)
    assert identities(trajectories) == identities(done) == expected(requests)
    assert [t.segments for t in pool.play(requests)] == [t.segments for t in trajectories]


def test_an_error_of_the_world_is_not_tried_again(workers: list[Any], requests: list[EpisodeRequest]):
    broken = replace(
        requests[0].task, raw={**requests[0].task.raw, "initial_state": {"initialization_data": {"agent_data": {"ordres": {}}}}}
    )
    pool = RolloutPool(workers, max_concurrent=4)
    with pytest.raises(TaudojoError, match="does not fit the domain retail"):
        pool.play([replace(requests[0], task=broken)])
    assert pool._workers == workers


def test_weights_reach_every_worker_and_mark_what_is_sampled_after_them(workers: list[Any], requests: list[EpisodeRequest]):
    pool = RolloutPool(workers, max_concurrent=4)
    pool.load_weights(ray.put(np.zeros(64, np.uint8)), version=3)
    assert {v for t in pool.play(requests) for s in t.segments for _, _, v in s.versions} == {3}
    assert pool.score([[1, 2, 3]]) == [[[0.0, -1.0, -1.0]]] * 2


def test_a_killed_worker_s_episodes_are_played_by_the_other(start: StartWorkers, requests: list[EpisodeRequest]):
    pool = RolloutPool(start(2, latency_s=0.3), max_concurrent=len(requests))
    victim = pool._workers[0]
    timer = threading.Timer(0.5, lambda: ray.kill(victim))  # in the middle of its episodes
    timer.start()
    done: list[Trajectory] = []
    trajectories = pool.play(requests, done.append)
    timer.join()
    assert identities(trajectories) == expected(requests)
    assert sorted(identities(done)) == sorted(expected(requests))  # each is reported once
    assert victim not in pool._workers


def test_an_engine_that_fails_costs_nothing_but_time(start: StartWorkers, workers: list[Any], requests: list[EpisodeRequest]):
    (failing,) = start(fail_at=3)
    pool = RolloutPool([failing, workers[0]], max_concurrent=4)
    assert identities(pool.play(requests)) == expected(requests)
    assert pool._workers == workers[:1]


def test_without_a_worker_left_the_run_is_told_to_resume(start: StartWorkers, requests: list[EpisodeRequest]):
    pool = RolloutPool(start(fail_at=2), max_concurrent=4)  # it has nothing to start another with
    assert {t.metrics.official_reward for t in pool.play([replace(r, policy="gold") for r in requests])} == {1.0}  # no engine
    with pytest.raises(TaudojoError, match=r"the last rollout worker is lost: request \d+ fails.*resume the run"):
        pool.play(requests)
