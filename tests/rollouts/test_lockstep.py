"""Lock-step generation: a fixed order into the engine, whoever comes first, and nobody left waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rollouts.engines.base import EngineConfig, EngineFailed, Generation, SamplingParams
from rollouts.engines.fake import FakeEngine, FakeScript
from rollouts.lockstep import LockStep

PARAMS = SamplingParams(max_tokens=4)


def engine(script: FakeScript | None = None) -> FakeEngine:
    """Answers a prompt with the prompt."""
    return FakeEngine(EngineConfig("fake:"), answer=list, script=script)


def test_requests_enter_in_the_order_of_their_numbers_whoever_comes_first():
    fake = engine()

    async def episode(lockstep: LockStep, number: int, delay_s: float) -> list[int]:
        await asyncio.sleep(delay_s)
        generation = await lockstep.generate(number, [number], PARAMS)
        return generation.token_ids

    async def run() -> list[list[int]]:
        lockstep = LockStep(fake, 4)
        return await asyncio.gather(*(episode(lockstep, n, 0.02 * (3 - n)) for n in range(4)))

    assert asyncio.run(run()) == [[0], [1], [2], [3]]
    assert fake.requests == [[0], [1], [2], [3]]


def test_a_batch_starts_when_all_its_requests_are_in_the_engine():
    class WatchedEngine(FakeEngine):
        """Counts the requests that were in when it was set going."""

        batches: list[int]

        async def resume(self) -> None:
            self.batches.append(len(self.requests))
            await super().resume()

    fake = WatchedEngine(EngineConfig("fake:"), answer=list)
    fake.batches = []

    async def episode(lockstep: LockStep, number: int) -> None:
        for turn in range(2):
            await lockstep.generate(number, [turn, number], PARAMS)

    async def run() -> None:
        lockstep = LockStep(fake, 3)
        await asyncio.gather(*(episode(lockstep, n) for n in range(3)))

    asyncio.run(run())
    assert fake.batches == [3, 6]
    assert fake.requests == [[turn, n] for turn in range(2) for n in range(3)]


def test_a_request_that_is_slow_to_enter_is_waited_for():
    class SlowEngine(FakeEngine):
        """Its first requests take longest to enter, as vLLM's, which prepares them in threads, on a busy machine."""

        async def generate(self, token_ids: Sequence[int], params: SamplingParams) -> Generation:
            await asyncio.sleep(0.1 / (1 + token_ids[0]))
            return await super().generate(token_ids, params)

        async def resume(self) -> None:
            assert self.held() == 3
            await super().resume()

    fake = SlowEngine(EngineConfig("fake:"), answer=list)

    async def run() -> None:
        lockstep = LockStep(fake, 3)
        await asyncio.wait_for(asyncio.gather(*(lockstep.generate(n, [n], PARAMS) for n in range(3))), timeout=10)

    asyncio.run(run())
    assert fake.requests == [[0], [1], [2]]


def test_an_episode_that_leaves_sets_the_others_free():
    fake = engine()

    async def episode(lockstep: LockStep, number: int) -> int:
        turns = number + 1
        for turn in range(turns):
            await lockstep.generate(number, [turn, number], PARAMS)
        lockstep.leave(number)
        return turns

    async def run() -> list[int]:
        lockstep = LockStep(fake, 3)
        return await asyncio.wait_for(asyncio.gather(*(episode(lockstep, n) for n in range(3))), timeout=10)

    assert asyncio.run(run()) == [1, 2, 3]
    assert fake.requests == [[0, 0], [0, 1], [0, 2], [1, 1], [1, 2], [2, 2]]


def test_an_episode_that_leaves_without_asking_is_not_waited_for():
    fake = engine()

    async def run() -> Generation:
        lockstep = LockStep(fake, 2)
        waiting = asyncio.create_task(lockstep.generate(1, [1], PARAMS))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        lockstep.leave(0)
        return await asyncio.wait_for(waiting, timeout=10)

    assert asyncio.run(run()).token_ids == [1]


def test_a_failure_reaches_everybody_who_waits():
    fake = engine(FakeScript(fail_at=1))

    async def run() -> list[Generation | BaseException]:
        lockstep = LockStep(fake, 3)
        waiting = (lockstep.generate(n, [n], PARAMS) for n in range(3))
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), timeout=10)

    assert [type(outcome) for outcome in asyncio.run(run())] == [EngineFailed] * 3


def test_an_engine_that_cannot_be_paused_fails_everybody_too():
    class StuckEngine(FakeEngine):
        async def pause(self) -> None:
            raise EngineFailed("it does not answer")

    async def run() -> list[Generation | BaseException]:
        lockstep = LockStep(StuckEngine(EngineConfig("fake:")), 2)
        waiting: Sequence = [lockstep.generate(n, [n], PARAMS) for n in range(2)]
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), timeout=10)

    assert [str(outcome) for outcome in asyncio.run(run())] == ["it does not answer"] * 2


@pytest.mark.parametrize("episodes", [1, 5])
def test_it_plays_on_after_a_batch(episodes: int):
    fake = engine()

    async def run() -> None:
        lockstep = LockStep(fake, episodes)
        for turn in range(3):
            answers = await asyncio.gather(*(lockstep.generate(n, [turn, n], PARAMS) for n in range(episodes)))
            assert [a.token_ids for a in answers] == [[turn, n] for n in range(episodes)]

    asyncio.run(run())
    assert len(fake.requests) == 3 * episodes
