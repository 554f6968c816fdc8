"""Which episodes a step of sampling asks for: groups of one task each, a function of seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from envs.types import Task
from rollouts.trajectory import EpisodeRequest

#: Streams of random numbers, so that the draws of a step do not depend on one another.
_TASKS, _SPARE = 7, 11


def requests_at(
    tasks: Sequence[Task], step: int, seed: int, *, groups: int, samples: int, temperature: float, stage: str
) -> list[EpisodeRequest]:
    """`groups` × `samples` episodes: a seeded permutation of the tasks per epoch, so that step and seed say all."""
    size = min(groups, len(tasks))
    per_epoch = len(tasks) // size
    order = np.random.default_rng([seed, _TASKS, step // per_epoch]).permutation(len(tasks))
    chosen = [tasks[i] for i in order[(step % per_epoch) * size :][:size]]
    return [
        request
        for number, task in enumerate(chosen)
        for request in _group(task, number, step, seed, samples=samples, temperature=temperature, stage=stage)
    ]


def spare_groups(tasks: Sequence[Task], asked: Sequence[EpisodeRequest], seed: int, most: int) -> Iterator[list[EpisodeRequest]]:
    """Up to `most` further groups for the step of the requests `asked`, of tasks that it did not ask for, numbered after them."""
    first, step = asked[0], asked[0].step
    groups = {r.group for r in asked}
    taken = {r.task.id for r in asked}
    others = [task for task in tasks if task.id not in taken]
    order = np.random.default_rng([seed, _SPARE, step]).permutation(len(others))
    samples = sum(r.group == first.group for r in asked)
    for number, at in enumerate(order[:most], start=max(groups) + 1):
        yield _group(others[at], number, step, seed, samples=samples, temperature=first.temperature, stage=first.stage)


def _group(
    task: Task, number: int, step: int, seed: int, *, samples: int, temperature: float, stage: str
) -> list[EpisodeRequest]:
    return [
        EpisodeRequest(
            task,
            seed=int(np.random.SeedSequence([seed, step, number, member]).generate_state(1)[0] % 2**31),
            stage=stage,
            step=step,
            group=number,
            index=number * samples + member,
            temperature=temperature,
        )
        for member in range(samples)
    ]
