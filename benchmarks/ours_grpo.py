"""GRPO steps of this project: the other side of `benchmarks.grpo`, a process of its own.

The parts and the step are those of `training.main`: rollout workers with vLLM, the learner, the proven weight sync, and
`training.stages.grpo.train_step`. Rewards are computed by the workers while other episodes still play, so `reward_s` is not told
apart from the rollout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import ray

from benchmarks.process import say
from benchmarks.workload import Figures, StepFigures, Workload, describe, side_main
from envs.data import DataSource, open_source
from envs.domain import load_domain
from rollouts.gold import gold_trajectories
from rollouts.trajectory import EpisodeRequest, Trajectory
from rollouts.worker import build_world
from training.stages.grpo import Parts, train_step
from training.startup import start_learner, start_pool, start_ray, world_config
from training.sync import WeightSync

MODE = "vllm"


def run(workload: Workload) -> Figures:
    """Load, warm up, train `workload.steps` steps."""
    start = time.perf_counter()
    config = workload.config
    source = open_source(config.env.data.source, config.env.data.path)
    steps = workload.requests(load_domain(config.env.domain, source))
    figures: list[StepFigures] = []
    with started_parts(workload, source, steps[0]) as parts:
        warm_up(parts, steps[0])
        setup_s = time.perf_counter() - start
        say(f"ours: ready in {setup_s:.0f} s")
        for requests in steps:
            begin, played = time.perf_counter(), 0

            def on_done(_: Trajectory, begin: float = begin, total: int = len(requests)) -> None:
                nonlocal played
                played += 1
                if played % 6 == 0 or played == total:
                    say(f"ours: {played}/{total} episodes, {time.perf_counter() - begin:.1f} s")

            trajectories, metrics = train_step(parts, requests, config.grpo, config.algorithm, config.grpo.lr, on_done)
            figures.append(step_figures(trajectories, metrics))
            say(describe("ours", trajectories, figures[-1]))
    return Figures(MODE, setup_s, figures)


@contextmanager
def started_parts(workload: Workload, source: DataSource, requests: Sequence[EpisodeRequest]) -> Iterator[Parts]:
    """Ray, the rollout workers and the learner, all at the checkpoint; `requests` give the probe its tasks."""
    config = workload.config
    world = world_config(config, workload.model_path, source)
    with ExitStack() as closers:
        start_ray(config)
        closers.callback(ray.shutdown)
        pool = start_pool(config, workload.model_path, world, closers)
        learner = start_learner(config, workload.model_path, closers)
        gold = gold_trajectories(build_world(world), [request.task for request in requests[:1]])
        probe = [segment.token_ids[:700] for trajectory in gold for segment in trajectory.segments[:1]]
        yield Parts(pool, learner, WeightSync(learner, pool, probe, config.model.dtype))


def warm_up(parts: Parts, requests: Sequence[EpisodeRequest]) -> None:
    """Two episodes and a sync, so that what is built on first use is not measured. The sync also forgets cached prefixes."""
    parts.pool.play([replace(request, seed=request.seed + 1_000_000) for request in requests[:2]])
    parts.sync.run()


def step_figures(trajectories: Sequence[Trajectory], metrics: Mapping[str, float]) -> StepFigures:
    """The figures of a step; advantages count as part of the update."""
    return StepFigures(
        step_s=metrics["seconds/step"],
        tokens=int(metrics["tokens"]),
        sampled_tokens=sum(trajectory.sampled_tokens for trajectory in trajectories),
        episodes=len(trajectories),
        rollout_s=metrics["seconds/rollout"] + metrics["seconds/reward"],
        update_s=metrics["seconds/prepare"] + metrics["seconds/update"],
        sync_s=metrics["seconds/sync"],
    )


if __name__ == "__main__":
    side_main(run)
