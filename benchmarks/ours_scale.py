"""The measured part of `benchmarks.scale`: one set of rollout workers, one `play` after another."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray

from benchmarks.paced import Meter, PacedWorker, SlowUser, heap_bytes
from benchmarks.process import job_main, say
from envs.data import open_source
from envs.retail.sampler import sample_tasks
from rollouts.engines.base import EngineConfig
from rollouts.engines.fake import FakeEngine, FakeScript
from rollouts.episode import World, play
from rollouts.scheduler import RolloutPool
from rollouts.trajectory import EpisodeRequest, Trajectory
from rollouts.worker import build_world
from training.compose import load
from training.models import resolve_model
from training.startup import start_ray, world_config

#: A task is played so many times, as in GRPO.
GROUP = 8
#: No turn of the expert is longer.
_LONGEST_TURN = 2048


@dataclass(frozen=True)
class Pace:
    """How long things take. The engine's cap is `slots / token_s` tokens per second; customers answer as `SlowUser` says."""

    latency_s: float
    token_s: float
    slots: int
    user_latency_s: float
    user_jitter: float

    @property
    def cap_tokens_per_s(self) -> float:
        return self.slots / self.token_s

    def alone_s(self, trajectory: Trajectory) -> float:
        """Seconds that this episode takes on an idle engine, if nothing else took any time."""
        messages = trajectory.transcript.messages
        turns = sum(message.role == "assistant" for message in messages) - 1  # the greeting is not the policy's
        answers = sum(message.role == "user" for message in messages)
        user = SlowUser(None, self.user_latency_s, self.user_jitter)  # type: ignore[arg-type]
        waits = sum(user.wait_s(trajectory.seed, number) for number in range(1, answers + 1))
        return turns * self.latency_s + trajectory.sampled_tokens * self.token_s + waits


@dataclass(frozen=True)
class Measured:
    """One run. CPU seconds of the process that schedules and of all workers; bytes that an episode takes in both."""

    workers: int
    concurrent: int
    episodes: int
    tokens: int
    seconds: float
    ideal_s: float
    longest_s: float
    scheduler_cpu_s: float
    worker_cpu_s: float
    bytes_per_episode: float

    @property
    def efficiency(self) -> float:
        return self.ideal_s / self.seconds


def run(job: dict[str, Any]) -> Mapping[str, Any]:
    """Plays `job["runs"]`, each `[workers, concurrent, episodes]`, at `job["pace"]`."""
    pace = Pace(**job["pace"])
    most = max(workers for workers, _, _ in job["runs"])
    config = load(["cluster=local", "tracking=none", f"cluster.rollout_workers={most}"])
    source = open_source(config.env.data.source, config.env.data.path)
    model_path = str(resolve_model(config.model))
    slow = {"latency_s": pace.user_latency_s, "jitter": pace.user_jitter}
    plain = world_config(config, model_path, source)
    world = build_world(plain)
    tasks = sample_tasks(world.domain, job["tasks"], seed=0)
    requests, alone_cpu_s = known_lengths(world, [EpisodeRequest(task, seed=0, stage="scale", policy="paced") for task in tasks])
    script = FakeScript([[0] * _LONGEST_TURN], pace.latency_s, pace.token_s, slots=pace.slots)
    start_ray(config)
    try:
        say(f"starting {most} workers; an episode alone takes {1e3 * alone_cpu_s / len(tasks):.2f} ms of CPU time")
        pool = RolloutPool.start(
            replace(plain, user_settings=slow), EngineConfig(script.model_path), workers=most, worker_class=PacedWorker
        )
        try:
            warm_up = groups(requests, 8 * most)
            RolloutPool(pool._workers, 8).play(warm_up)
            measured = [measure(pool._workers[:w], c, groups(requests, n), pace) for w, c, n in job["runs"]]
        finally:
            pool.close()
    finally:
        ray.shutdown()
    return {"runs": [asdict(m) for m in measured], "alone_cpu_s": alone_cpu_s / len(tasks)}


def known_lengths(world: World, requests: Sequence[EpisodeRequest]) -> tuple[list[EpisodeRequest], float]:
    """The requests with the number of tokens that the expert writes, and the CPU seconds of playing them with nothing around."""
    engine = FakeEngine(EngineConfig("fake:"), script=FakeScript([[0] * _LONGEST_TURN]), keep=False)

    async def all_of_them() -> list[Trajectory]:
        return list(await asyncio.gather(*(play(request, world, engine.generate) for request in requests)))

    asyncio.run(all_of_them())
    begin = time.process_time()
    played = asyncio.run(all_of_them())
    cpu_s = time.process_time() - begin
    return [replace(r, expected_tokens=float(t.sampled_tokens)) for r, t in zip(requests, played, strict=True)], cpu_s


def groups(requests: Sequence[EpisodeRequest], episodes: int) -> list[EpisodeRequest]:
    """So many episodes: the tasks in turn, `GROUP` of each."""
    return [
        replace(requests[(number // GROUP) % len(requests)], seed=number, group=number // GROUP) for number in range(episodes)
    ]


def measure(workers: Sequence[Any], concurrent: int, requests: Sequence[EpisodeRequest], pace: Pace) -> Measured:
    """One `play` on these workers, `concurrent` episodes in flight on all of them together."""
    pool = RolloutPool(workers, max_concurrent=-(-concurrent // len(workers)))
    before: list[Meter] = ray.get([worker.settle.remote() for worker in workers])
    gc.collect()
    heap, cpu_s, begin = heap_bytes(), time.process_time(), time.monotonic()
    played = pool.play(requests)
    seconds, cpu_s = time.monotonic() - begin, time.process_time() - cpu_s
    after: list[Meter] = ray.get([worker.meter.remote() for worker in workers])
    gc.collect()
    tokens = sum(trajectory.sampled_tokens for trajectory in played)
    assert tokens == sum(b.tokens - a.tokens for a, b in zip(before, after, strict=True))
    longest_s = max(pace.alone_s(trajectory) for trajectory in played)
    in_workers = sum(b.peak_bytes - a.heap_bytes for a, b in zip(before, after, strict=True))
    measured = Measured(
        workers=len(workers),
        concurrent=concurrent,
        episodes=len(played),
        tokens=tokens,
        seconds=seconds,
        ideal_s=max(longest_s, tokens / (len(workers) * pace.cap_tokens_per_s)),
        longest_s=longest_s,
        scheduler_cpu_s=cpu_s,
        worker_cpu_s=sum(b.cpu_s - a.cpu_s for a, b in zip(before, after, strict=True)),
        bytes_per_episode=in_workers / concurrent + (heap_bytes() - heap) / len(played),
    )
    say(
        f"{measured.workers} workers, {concurrent} in flight: {len(played)} episodes in {seconds:.1f} s, "
        f"ideal {measured.ideal_s:.1f} (longest episode {longest_s:.1f}), efficiency {measured.efficiency:.3f}; CPU per episode: "
        f"scheduler {1e3 * cpu_s / len(played):.2f} ms, workers {1e3 * measured.worker_cpu_s / len(played):.2f} ms; "
        f"{measured.bytes_per_episode / 1e3:.0f} kB an episode (workers {in_workers / concurrent / 1e3:.0f})"
    )
    return measured


if __name__ == "__main__":
    job_main(run)
