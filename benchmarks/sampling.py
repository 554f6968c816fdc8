"""Plays the episodes that `benchmarks.learner` trains on: one step's groups, sampled from an SFT checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray

from benchmarks.process import job_main, say
from benchmarks.workload import Workload
from envs.data import open_source
from envs.domain import load_domain
from rollouts.trajectory import Trajectory
from training.startup import start_pool, start_ray, world_config


def run(job: dict[str, Any]) -> Mapping[str, Any]:
    """Samples from `model` under `overrides` and writes `file`."""
    workload = Workload(job["model"], overrides=job["overrides"])
    config = workload.config
    source = open_source(config.env.data.source, config.env.data.path)
    (requests,) = workload.requests(load_domain(config.env.domain, source))
    played = 0

    def on_done(_: Trajectory) -> None:
        nonlocal played
        played += 1
        if played % 6 == 0 or played == len(requests):
            say(f"sampling: {played}/{len(requests)} episodes")

    with ExitStack() as closers:
        start_ray(config)
        closers.callback(ray.shutdown)
        pool = start_pool(config, workload.model_path, world_config(config, workload.model_path, source), closers)
        trajectories = pool.play(requests, on_done)
    lines = [json.dumps(trajectory.to_json(), ensure_ascii=False) for trajectory in trajectories]
    Path(job["file"]).write_text("\n".join(lines) + "\n")
    return {"episodes": len(trajectories)}


if __name__ == "__main__":
    job_main(run)
