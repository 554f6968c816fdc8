"""What both sides of the GRPO benchmark are given, and the figures that they bring back.

A side is a module with `run(workload) -> Figures` and a call of `side_main(run)`. It lives in a process of its own; what goes
in and out are two JSON files, so that neither side's libraries, threads or memory are seen by the other.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median_low
from typing import Any

from benchmarks.process import say
from envs.domain import Domain
from envs.errors import TaudojoError
from envs.retail.sampler import sample_tasks, task_users
from rollouts.trajectory import EpisodeRequest, Trajectory
from training.compose import load
from training.config import RunConfig

PHASES = ("rollout_s", "reward_s", "update_s", "sync_s")

#: What holds on both sides whatever is asked for: every episode goes through the one update of its step, no reference model,
#: and no episode is ended by the clock.
FIXED = (
    "grpo.drop_flat_groups=false",
    "grpo.updates_per_step=1",
    "algorithm.kl_coef=0.0",
    "env.deadline_s=86400",
    "tracking=none",
)


#: Groups of a step, unless overridden: more than the main run's, whose steps are small to fit its minutes.
TASKS_PER_STEP = "grpo.tasks_per_step=4"


@dataclass(frozen=True)
class Workload:
    """`steps` GRPO steps from the checkpoint in `model_path`, configured as `+experiment=grpo` with `overrides`."""

    model_path: str
    steps: int = 1
    overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise TaudojoError(f"--steps is {self.steps}; give it at least 1.")

    @cached_property
    def config(self) -> RunConfig:
        """Raises TaudojoError for an override that does not fit."""
        return load(["+experiment=grpo", TASKS_PER_STEP, *self.overrides, *FIXED])

    def requests(self, domain: Domain) -> list[list[EpisodeRequest]]:
        """The episodes of every step, samples of a task side by side; the same in every process.

        Each step has tasks of its own, none about a customer of the official test tasks.
        """
        grpo, seed = self.config.grpo, self.config.seed
        official = task_users(domain, domain.tasks("test"))
        tasks = sample_tasks(domain, grpo.tasks_per_step * self.steps, seed, grpo.kinds, exclude_users=official)
        return [
            [
                EpisodeRequest(
                    task,
                    seed=seed + 10_000 * step + 100 * group + sample,
                    stage="benchmark",
                    step=step,
                    group=group,
                    temperature=grpo.temperature,
                )
                for group, task in enumerate(tasks[step * grpo.tasks_per_step :][: grpo.tasks_per_step])
                for sample in range(grpo.samples_per_task)
            ]
            for step in range(self.steps)
        ]


@dataclass(frozen=True)
class StepFigures:
    """One GRPO step: what it took and how many tokens went through it.

    `tokens` counts every trajectory of the update whole, prompt and tool results included, padding not; `sampled_tokens` those
    that the policy wrote. A phase that a side cannot tell apart is None. `step_s` is the wall time from the first prompt until
    the next step could sample from the new weights.
    """

    step_s: float
    tokens: int
    sampled_tokens: int
    episodes: int
    rollout_s: float | None = None
    reward_s: float | None = None
    update_s: float | None = None
    sync_s: float | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.step_s


@dataclass(frozen=True)
class Figures:
    """What a side measured. `mode` says how it played; `setup_s` is loading and warm-up, outside the steps."""

    mode: str
    setup_s: float
    steps: Sequence[StepFigures] = field(default_factory=list)

    @property
    def median_step(self) -> StepFigures:
        """The step of median speed (the slower one of an even number): a real step, so that its figures belong together."""
        if not self.steps:
            raise TaudojoError(f"The side that played with {self.mode} finished no step.")
        median = median_low(step.tokens_per_s for step in self.steps)
        return next(step for step in self.steps if step.tokens_per_s == median)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Figures:
        return cls.of(json.loads(path.read_text()))

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Figures:
        """From its JSON."""
        return cls(raw["mode"], raw["setup_s"], [StepFigures(**step) for step in raw["steps"]])


class Stopwatch:
    """Seconds by phase, added up.

    >>> with watch("rollout_s"):
    ...     play()
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start


def describe(side: str, trajectories: Sequence[Trajectory], step: StepFigures) -> str:
    """One line about a step."""
    ends = Counter(str(trajectory.transcript.stop_reason) for trajectory in trajectories)
    mean = sum(trajectory.reward.total for trajectory in trajectories) / len(trajectories)
    seconds = {phase.removesuffix("_s"): getattr(step, phase) for phase in PHASES}
    return (
        f"{side}: step of {step.episodes} episodes, {step.tokens} tokens ({step.sampled_tokens} sampled) in {step.step_s:.1f} s ("
        + ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items() if value is not None)
        + f"); mean reward {mean:.2f}; ended by "
        + ", ".join(f"{reason} {n}" for reason, n in sorted(ends.items()))
    )


def side_main(run: Callable[[Workload], Figures], arguments: Sequence[str] | None = None) -> None:
    """The command of a side: read the workload from the first file, write the figures to the second."""
    workload_file, figures_file = map(Path, sys.argv[1:] if arguments is None else arguments)
    try:
        run(Workload(**json.loads(workload_file.read_text()))).write(figures_file)
    except TaudojoError as error:
        say(str(error))
        sys.exit(2)
