"""The test of CONTRIBUTING.md's engine. Run by tests/test_contributing.py, beside the files that the recipe makes."""

import asyncio

from rollouts.engines.base import EngineConfig, SamplingParams
from rollouts.worker import build_engine


def test_it_counts_to_the_stop_token_and_names_the_weights_it_sampled_with():
    async def sample() -> None:
        engine = build_engine(EngineConfig("count"))
        await engine.load_weights("new.safetensors", version=3)
        answer = await engine.generate([1, 2], SamplingParams(max_tokens=10, stop_token_ids=(5,)))
        assert (answer.token_ids, answer.finish, answer.weight_version) == ([3, 4, 5], "stop", 3)
        assert len(answer.logprobs) == len(answer.token_ids)

    asyncio.run(sample())


def test_a_paused_engine_takes_requests_and_waits():
    async def sample() -> None:
        engine = build_engine(EngineConfig("count"))
        await engine.pause()
        waiting = asyncio.create_task(engine.generate([1], SamplingParams(max_tokens=1)))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await engine.resume()
        assert (await waiting).token_ids == [2]

    asyncio.run(sample())
