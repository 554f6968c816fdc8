"""The parts of a run, started: Ray, the rollout workers and the learner, as the configuration asks for them.

`closers` is given what ends each part, and closes them in the opposite order.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from envs.data import DataSource
from envs.errors import TaudojoError
from envs.machine import cores
from training.config import RunConfig
from training.resources import GIB

if TYPE_CHECKING:
    from rollouts.events import EventSettings
    from rollouts.scheduler import RolloutPool
    from rollouts.worker import WorldConfig
    from training.learner.group import LearnerGroup


def start_ray(config: RunConfig) -> None:
    """Joins a cluster, or starts Ray on this machine with room for every actor."""
    import logging

    import ray

    from rollouts.parsers.base import debugging

    cluster = config.cluster
    if ray.is_initialized():
        return
    # Ray gives its workers a low priority; here they are the work, and any other process would starve them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # The parsers speak in the workers, and DEBUG_PARSER asks to hear them.
    settings: dict[str, Any] = {"log_to_driver": debugging(), "logging_level": logging.ERROR}
    if cluster.address:
        settings["address"] = cluster.address
    else:
        # Logical CPUs count actors, not cores: on a laptop engine and learner take turns on the same cores.
        settings |= {
            "num_cpus": max(cores(), cluster.rollout_workers + cluster.learner_world_size),
            "object_store_memory": int(cluster.object_store_gib * GIB),
            "include_dashboard": False,
        }
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise TaudojoError(f"Ray did not start: {str(error).strip().splitlines()[0]}") from error


def world_config(config: RunConfig, model_path: str, source: DataSource, events: EventSettings | None = None) -> WorldConfig:
    """The plain data from which workers build their world. `events`: what they write about their time."""
    from rollouts.worker import WorldConfig

    return WorldConfig(
        model_path=model_path,
        domain=config.env.domain,
        source=source,
        chat=config.model.chat,
        parser=config.model.tool_parser,
        style=config.env.prompt,
        user=config.user.name,
        user_settings=config.user.settings,
        reward=config.reward,
        limits=config.limits(),
        events=events,
        structured=config.rollout.structured,
        examples=config.env.examples,
    )


def start_pool(config: RunConfig, model_path: str, world: WorldConfig, closers: ExitStack) -> RolloutPool:
    """The rollout workers, each with its engine; none where nothing is played."""
    from rollouts.scheduler import RolloutPool

    cluster = config.cluster
    if not config.plays:
        return RolloutPool([], config.rollout.max_concurrent)
    pool = RolloutPool.start(
        world,
        config.engine(model_path),
        workers=cluster.rollout_workers,
        max_concurrent=config.rollout.max_concurrent,
        num_gpus=cluster.gpus_per_rollout_worker,
        lockstep=config.deterministic,
    )
    closers.callback(pool.close)
    return pool


def start_learner(config: RunConfig, model_path: str, closers: ExitStack) -> LearnerGroup:
    """The learner's processes, with the model."""
    from training.learner.group import LearnerGroup

    cluster = config.cluster
    threads = max(1, cores() // cluster.learner_world_size) if cluster.device == "cpu" else None
    learner = LearnerGroup.start(
        config.learner_config(model_path, threads),
        world_size=cluster.learner_world_size,
        num_gpus=cluster.gpus_per_learner,
        port=cluster.rendezvous_port,
    )
    closers.callback(learner.close)
    return learner
