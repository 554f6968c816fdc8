"""Our sides of `benchmarks.rollouts`: the episodes as they are played (`play`), and their requests on the bare engine (`replay`).

A replay is the limit: the same prompts on an engine of the same settings, each answer as long as it was, each turn after the one
before it (with the words of the replay's own engine), as many episodes in flight; no environment, no parser, no Ray, nothing
between an answer and the next prompt.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray

from benchmarks.process import job_main, say
from benchmarks.workload import Workload
from envs.data import open_source
from envs.domain import load_domain
from rollouts.engines.base import Engine, Generation, SamplingParams
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

        return await play_episode(request, self._world, generate, place)

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


async def replay(job: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded requests on an engine alone."""
    workload = Workload(job["model"], overrides=job["overrides"])
    recorded = json.loads(Path(job["file"]).read_text())
    engine = VLLMEngine(workload.config.engine(workload.model_path))
    try:
        await replay_on(engine, recorded["warm"], 2)
        begin = time.monotonic()
        tokens = await replay_on(engine, recorded["episodes"], workload.config.rollout.max_concurrent)
        return {"tokens": tokens, "seconds": time.monotonic() - begin}
    finally:
        await engine.close()


async def replay_on(engine: Engine, episodes: Sequence[Sequence[Mapping[str, Any]]], concurrent: int) -> int:
    """Plays the turns again, as long as they were; returns the number of tokens written.

    Where a prompt has what was sampled before, it is given what this engine wrote in its place, as many tokens: else none of
    that would be in the prefix cache, where an episode finds it, and be computed once more.
    """
    free = asyncio.Semaphore(concurrent)

    async def one(turns: Sequence[Mapping[str, Any]]) -> int:
        written: list[tuple[int, list[int], list[int]]] = []  # an answer's place in later prompts, as recorded, as written now
        async with free:
            for turn in turns:
                prompt = list(turn["prompt"])
                for start, recorded, own in written:
                    if prompt[start : start + len(recorded)] == recorded:
                        prompt[start : start + len(recorded)] = own
                params = SamplingParams(max_tokens=len(turn["sampled"]), exact=True)
                generation = await engine.generate(prompt, params)
                written.append((len(prompt), turn["sampled"], generation.token_ids))
        return sum(len(own) for _, _, own in written)

    return sum(await asyncio.gather(*(one(turns) for turns in episodes)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    job_main(run)
