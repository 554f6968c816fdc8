"""Weights that change while episodes are played: several plays at once, spans stamped, and what a cancelled play leaves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray

from envs.types import AgentTurn
from rollouts.engines.base import EngineConfig, Generation, SamplingParams
from rollouts.engines.fake import FakeEngine, FakeScript
from rollouts.scheduler import Cancelled, RolloutPool
from rollouts.trajectory import EpisodeRequest, Trajectory

TOKENS = 20


def engine() -> FakeEngine:
    return FakeEngine(EngineConfig("fake:"), script=FakeScript([[7] * TOKENS], latency_s=0.05, token_s=0.02))


async def answer(fake: FakeEngine) -> Generation:
    return await fake.generate([1, 2], SamplingParams(max_tokens=TOKENS))


@pytest.mark.parametrize(
    ("swaps", "versions"),
    [
        ((), [(0, 5, 3)]),
        (((2, 4),), [(0, 2, 3), (2, 5, 4)]),
        (((0, 4), (3, 5), (3, 6)), [(0, 3, 4), (3, 5, 6)]),
        (((5, 4),), [(0, 5, 3)]),
    ],
)
def test_the_spans_of_an_answer_are_whole_and_never_empty(swaps: Any, versions: Any):
    assert Generation([1] * 5, [0.0] * 5, "stop", weight_version=3, swaps=swaps).versions == versions


def test_a_fake_engine_keeps_what_it_has_written_when_the_weights_change():
    async def run() -> tuple[Generation, Generation]:
        fake = engine()
        first = asyncio.create_task(answer(fake))
        await asyncio.sleep(0.25)
        await fake.load_weights("weights", 1)
        return await first, await answer(fake)

    swapped, after = asyncio.run(run())
    (_, at, _), second = swapped.versions
    assert 0 < at < TOKENS and second == (at, TOKENS, 1)
    assert len(swapped.token_ids) == TOKENS
    assert after.versions == [(0, TOKENS, 1)]


def test_a_paused_fake_engine_stands_still():
    async def run() -> tuple[list[int], int]:
        fake = engine()
        task = asyncio.create_task(answer(fake))
        await asyncio.sleep(0.2)
        await fake.pause()
        (writing,) = fake._writing
        seen = [writing.written(fake._clock())]
        await asyncio.sleep(0.3)
        seen.append(writing.written(fake._clock()))
        await fake.resume()
        return seen, len((await task).token_ids)

    (before, after), written = asyncio.run(run())
    assert before == after < TOKENS == written


@pytest.fixture(scope="module")
def pool(cluster: None, world: Any, world_config: Any) -> Iterator[RolloutPool]:
    """Two workers whose engines take 0.1 to 0.2 seconds a turn."""
    script = FakeScript([world.chat.assistant(AgentTurn("What is your order number?"))], latency_s=0.1, jitter=1.0)
    pool = RolloutPool.start(world_config, EngineConfig(script.model_path), workers=2, max_concurrent=4)
    yield pool
    pool.close()


@pytest.fixture
def requests(task_sets: Any) -> list[EpisodeRequest]:
    return [EpisodeRequest(task, seed=n, stage="test", group=n) for n, task in enumerate(task_sets.heldout)]


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Starts it; the list will hold what it returns or raises."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(work())
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, came


def names(trajectories: list[Trajectory]) -> list[tuple[str, int]]:
    return [(t.transcript.task_id, t.seed) for t in trajectories]


def test_threads_that_play_at_once_get_their_own_episodes(pool: RolloutPool, requests: list[EpisodeRequest]):
    parts = [requests[:5], requests[5:6], requests[6:], []]
    heard: list[list[Trajectory]] = [[], [], [], []]
    running = [in_thread(lambda n=n, part=part: pool.play(part, heard[n].append)) for n, part in enumerate(parts)]
    for (thread, came), part, done in zip(running, parts, heard, strict=True):
        thread.join(60)
        assert names(came[0]) == [(r.task.id, r.seed) for r in part]
        assert sorted(names(done)) == sorted(names(came[0]))
    assert names(pool.play(requests[:2])) == [(r.task.id, r.seed) for r in requests[:2]]


def test_weights_can_change_while_episodes_are_played(pool: RolloutPool, requests: list[EpisodeRequest]):
    thread, came = in_thread(lambda: pool.play(requests))
    for version in (1, 2, 3):
        time.sleep(0.2)
        pool.load_weights(ray.put(np.zeros(8, np.uint8)), version)
        assert len(pool.score([[1, 2]])) == 2
    thread.join(60)
    (played,) = came
    assert names(played) == [(r.task.id, r.seed) for r in requests]
    assert {v for t in played for v in t.tokens_by_version} >= {1, 2}


def test_a_worker_that_is_dead_when_the_weights_change_is_replaced_once(pool: RolloutPool, requests: list[EpisodeRequest]):
    thread, came = in_thread(lambda: pool.play(requests))
    time.sleep(0.3)
    victim = pool._workers[0]
    ray.kill(victim)
    pool.load_weights(ray.put(np.zeros(8, np.uint8)), 1)
    pool.score([[1, 2]])
    thread.join(120)
    assert names(came[0]) == [(r.task.id, r.seed) for r in requests]
    assert victim not in pool._workers
    assert pool._started == 3


def test_a_cancelled_play_ends_at_once_and_the_pool_goes_on(pool: RolloutPool, requests: list[EpisodeRequest]):
    threads = [in_thread(lambda: pool.play(requests)) for _ in range(2)]
    time.sleep(0.3)
    pool.cancel()
    for thread, came in threads:
        thread.join(30)
        assert isinstance(came[0], Cancelled)
    assert names(pool.play(requests[:3])) == [(r.task.id, r.seed) for r in requests[:3]]


def test_an_error_ends_the_plays_of_all_threads(pool: RolloutPool, requests: list[EpisodeRequest]):
    def fail(_: Trajectory) -> None:
        raise ValueError("no more")

    threads = [in_thread(lambda: pool.play(requests, fail)), in_thread(lambda: pool.play(requests))]
    for thread, came in threads:
        thread.join(60)
        assert isinstance(came[0], ValueError)
