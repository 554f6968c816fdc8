"""Play a task set and score it: the loop that training and evaluation share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from envs.types import Task
from rewards.metrics import block
from rollouts.trajectory import EpisodeRequest, Trajectory, user_usage


class Player(Protocol):
    """Anything that plays episodes: a `RolloutPool`."""

    def play(
        self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None = None
    ) -> list[Trajectory]: ...


@dataclass(frozen=True)
class Evaluation:
    """`blocks`: task set name → the metrics of `rewards.metrics.block`."""

    blocks: dict[str, dict[str, Any]]
    trajectories: list[Trajectory]

    def of(self, name: str) -> list[Trajectory]:
        """The trajectories of one task set, by the group number that `evaluate` gave it."""
        number = list(self.blocks).index(name)
        return [t for t in self.trajectories if t.group == number]

    def flat(self) -> dict[str, float]:
        """`{"heldout/action_f1": 0.7, …}` for logging, and what customers played by a language model used."""
        rates = {
            f"{name}/{key}": float(value)
            for name, values in self.blocks.items()
            for key, value in values.items()
            if isinstance(value, int | float)
        }
        return {**rates, **user_usage(self.trajectories)}


def evaluate(
    player: Player,
    task_sets: dict[str, Sequence[Task]],
    *,
    stage: str,
    temperature: float,
    seed: int,
    on_done: Callable[[Trajectory], None] | None = None,
) -> Evaluation:
    """One episode per task; all task sets are in flight together."""
    requests = [
        EpisodeRequest(task, seed=seed + i, stage=stage, group=number, temperature=temperature)
        for number, tasks in enumerate(task_sets.values())
        for i, task in enumerate(tasks)
    ]
    trajectories = player.play(requests, on_done)
    blocks = {name: block([t.metrics for t in trajectories if t.group == number]) for number, name in enumerate(task_sets)}
    return Evaluation(blocks, trajectories)
