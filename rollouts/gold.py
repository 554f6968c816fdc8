"""The expert's episodes, tokenised as the policy would have sampled them: the data of supervised fine-tuning."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from envs.types import Task
from rollouts.engines.base import Generation, SamplingParams
from rollouts.episode import World, play
from rollouts.trajectory import EpisodeRequest, Trajectory


def gold_trajectories(world: World, tasks: Sequence[Task], stage: str = "gold") -> list[Trajectory]:
    """One trajectory per task whose gold episode fits the context and ends as τ² scores it; needs no engine."""

    async def engine(token_ids: Sequence[int], params: SamplingParams) -> Generation:
        raise AssertionError("the expert speaks in a gold episode")

    async def all_of_them() -> list[Trajectory]:
        return [
            await play(EpisodeRequest(task, seed=number, stage=stage, policy="gold"), world, engine)
            for number, task in enumerate(tasks)
        ]

    played = asyncio.run(all_of_them())
    return [t for t in played if t.transcript.stop_reason is not None and t.transcript.stop_reason.official]
