"""Our sides of `benchmarks.rollouts`: the episodes as they are played (`play`), and their requests on the bare engine (`replay`).

A replay is the limit: the same prompts on an engine of the same settings, which is made to write the same tokens, each turn after
the one before it, as many episodes in flight; no environment, no parser, no Ray, nothing between an answer and the next prompt.
(Other tokens of the same number would be more work: samples of a task often say the same, whose keys and values the prefix cache
then has once, for all of them to read from a core's cache.)
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray

from benchmarks.process import job_main, say
from benchmarks.workload import Workload
from envs.data import open_source
from envs.domain import load_domain
from envs.errors import TaudojoError
from rollouts.engines.base import EngineConfig, Generation, SamplingParams
from rollouts.engines.vllm import VLLMEngine
from rollouts.episode import play as play_episode
from rollouts.scheduler import RolloutPool
from rollouts.trajectory import EpisodeRequest, Trajectory
from rollouts.watchdog import Place
from rollouts.worker import RolloutWorker
from training.startup import start_ray, world_config


@dataclass(frozen=True)
class Turn:
    """One request to the engine: when it began (`time.monotonic()`), what it was asked, what it wrote."""

    begin: float
    prompt: list[int]
    sampled: list[int]
    cached: int


class RecordingWorker(RolloutWorker):
    """Remembers what its engine was asked."""

    async def play(self, request: EpisodeRequest, place: Place | None = None) -> Trajectory:
        turns = self._turns().setdefault(request.seed, [])

        async def generate(token_ids: Sequence[int], params: SamplingParams) -> Generation:
            begin, prompt = time.monotonic(), list(token_ids)
            generation = await self._engine.generate(prompt, params)
            turns.append(Turn(begin, prompt, generation.token_ids, generation.cached_tokens))
            return generation

        return await play_episode(request, self._world, generate, place, self._gate)

    def _turns(self) -> dict[int, list[Turn]]:
        return self.__dict__.setdefault("recorded", {})

    async def take(self) -> tuple[dict[int, list[Turn]], int]:
        """The turns since the last call, by the seed of their episode; and the size of a block of the prefix cache."""
        recorded, self.recorded = self._turns(), {}
        assert isinstance(self._engine, VLLMEngine)
        return recorded, self._engine.block_size


def run(job: dict[str, Any]) -> Mapping[str, Any]:
    return play(job) if job["kind"] == "play" else asyncio.run(replay(job))


def play(job: Mapping[str, Any]) -> dict[str, Any]:
    """Plays the episodes; their requests go to `job["file"]`."""
    workload = Workload(job["model"], overrides=job["overrides"])
    config = workload.config
    source = open_source(config.env.data.source, config.env.data.path)
    (requests,) = workload.requests(load_domain(config.env.domain, source))
    start_ray(config)
    try:
        pool = RolloutPool.start(
            world_config(config, workload.model_path, source),
            config.engine(workload.model_path),
            max_concurrent=config.rollout.max_concurrent,
            num_gpus=config.cluster.gpus_per_rollout_worker,
            worker_class=RecordingWorker,
        )
        try:
            warm = [replace(request, seed=request.seed + 1_000_000) for request in requests[:2]]
            pool.play(warm)
            warm_turns, block_size = ray.get(pool._workers[0].take.remote())
            begin, played = time.monotonic(), 0

            def on_done(_: Trajectory) -> None:
                nonlocal played
                played += 1
                if played % 16 == 0:
                    say(f"ours: {played}/{len(requests)} episodes, {time.monotonic() - begin:.0f} s")

            trajectories = pool.play(requests, on_done)
            seconds = time.monotonic() - begin
            turns, _ = ray.get(pool._workers[0].take.remote())
        finally:
            pool.close()
    finally:
        ray.shutdown()
    recorded = {"warm": list(warm_turns.values()), "episodes": [turns.get(request.seed, []) for request in requests]}
    as_json = {name: [[asdict(t) for t in episode] for episode in episodes] for name, episodes in recorded.items()}
    Path(job["file"]).write_text(json.dumps(as_json))
    cached, cacheable = cache_use([t for episode in recorded["episodes"] for t in episode], recorded["warm"], block_size)
    return {
        "episodes": len(trajectories),
        "tokens": sum(trajectory.sampled_tokens for trajectory in trajectories),
        "seconds": seconds,
        "cached": cached,
        "cacheable": cacheable,
        "reward": sum(t.reward.total for t in trajectories) / len(trajectories),
    }


def cache_use(turns: Sequence[Turn], before: Sequence[Sequence[Turn]], block_size: int) -> tuple[int, int]:
    """Prompt tokens that the engine found in its prefix cache, and those that it could have found.

    Those are the whole blocks that stood, with all before them, in a request that began earlier. A prompt's last token is always
    computed.
    """
    seen: set[int] = set()
    for episode in before:
        for turn in episode:
            seen.update(_blocks([*turn.prompt, *turn.sampled], block_size))
    cached = cacheable = 0
    for turn in sorted(turns, key=lambda t: t.begin):
        known = 0
        for block in _blocks(turn.prompt, block_size):
            if block not in seen:
                break
            known += 1
        cacheable += known * block_size
        cached += min(turn.cached, known * block_size)
        seen.update(_blocks([*turn.prompt, *turn.sampled], block_size))
    return cached, cacheable


def _blocks(ids: Sequence[int], size: int) -> list[int]:
    """A hash for each whole block with all before it, the last token left out."""
    hashes, state = [], 0
    for start in range(0, (len(ids) - 1) // size * size, size):
        state = hash((state, tuple(ids[start : start + size])))
        hashes.append(state)
    return hashes


class ReplayEngine(VLLMEngine):
    """Writes what it is told to."""

    def _settings(self, config: EngineConfig) -> dict[str, Any]:
        return super()._settings(config) | {"logits_processors": ["benchmarks.forced:Forced"]}

    async def write(self, prompt: list[int], tokens: list[int]) -> list[int]:
        """Samples these tokens, as `generate` samples any."""
        import vllm

        sampling = vllm.SamplingParams(
            max_tokens=len(tokens), temperature=1.0, ignore_eos=True, logprobs=0, detokenize=False, extra_args={"forced": tokens}
        )
        await self._bind()
        return list((await self._last(prompt, sampling, priority=0)).outputs[0].token_ids)


async def replay(job: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded requests on an engine alone."""
    workload = Workload(job["model"], overrides=job["overrides"])
    recorded = json.loads(Path(job["file"]).read_text())
    engine = ReplayEngine(workload.config.engine(workload.model_path))
    try:
        await replay_on(engine.write, recorded["warm"], 2)
        begin = time.monotonic()
        tokens = await replay_on(engine.write, recorded["episodes"], workload.config.rollout.max_concurrent)
        return {"tokens": tokens, "seconds": time.monotonic() - begin}
    finally:
        await engine.close()


async def replay_on(
    write: Callable[[list[int], list[int]], Awaitable[list[int]]],
    episodes: Sequence[Sequence[Mapping[str, Any]]],
    concurrent: int,
) -> int:
    """Plays the turns again, so many episodes at a time, in the order in which they began; returns the number of tokens written.

    Raises:
        TaudojoError: the engine did not write what it was told to, so this would not be the same work.
    """
    free = asyncio.Semaphore(concurrent)

    async def one(turns: Sequence[Mapping[str, Any]]) -> int:
        async with free:
            for turn in turns:
                if await write(turn["prompt"], turn["sampled"]) != turn["sampled"]:
                    raise TaudojoError("the replay's engine wrote other tokens than the episode has")
        return sum(len(turn["sampled"]) for turn in turns)

    in_order = sorted((turns for turns in episodes if turns), key=lambda turns: turns[0]["begin"])
    return sum(await asyncio.gather(*(one(turns) for turns in in_order)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    job_main(run)
