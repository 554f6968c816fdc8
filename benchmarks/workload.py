"""What both sides of the GRPO benchmark are given, and the figures that they bring back.

A side is a module with `run(workload) -> Figures` and a call of `side_main(run)`. It lives in a process of its own; what goes
in and out are two JSON files, so that neither side's libraries, threads or memory are seen by the other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any

from envs.data import open_source
from envs.domain import Domain
from envs.errors import TaudojoError
from envs.retail.sampler import sample_tasks, task_users
from rollouts.chat import ChatConfig
from rollouts.episode import EpisodeLimits
from rollouts.trajectory import EpisodeRequest
from rollouts.worker import WorldConfig

PHASES = ("rollout_s", "reward_s", "update_s", "sync_s")


@dataclass(frozen=True)
class Workload:
    """GRPO steps of `tasks` × `samples` episodes, each step on tasks of its own. Lengths in tokens.

    `chat` and `reward` are the mappings of the configuration, `tool_parser` its name. `max_new_tokens` holds for one turn,
    `max_model_len` for a whole episode. No episode is ended by the clock.
    """

    model_path: str
    chat: Mapping[str, Any]
    tool_parser: str
    reward: Mapping[str, Any]
    tasks: int = 4
    samples: int = 6
    steps: int = 1
    max_new_tokens: int = 128
    max_turns: int = 16
    max_model_len: int = 2048
    temperature: float = 1.0
    learning_rate: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tasks", "steps", "max_new_tokens", "max_turns", "max_model_len"):
            if getattr(self, name) < 1:
                raise TaudojoError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give it at least 1.")
        if self.samples < 2:
            raise TaudojoError(f"--samples is {self.samples}; a group needs at least 2 episodes to compare.")
        if self.max_new_tokens >= self.max_model_len:
            raise TaudojoError(
                f"--max-new-tokens ({self.max_new_tokens}) leaves no room for a prompt in --max-model-len ({self.max_model_len})."
            )

    @property
    def episodes(self) -> int:
        """Episodes of one step."""
        return self.tasks * self.samples

    def world(self) -> WorldConfig:
        """Retail with the compact prompt and the scripted customer."""
        limits = EpisodeLimits(
            max_model_len=self.max_model_len,
            max_turn_tokens=self.max_new_tokens,
            max_steps=self.max_turns,
            deadline_s=float("inf"),
        )
        return WorldConfig(
            model_path=self.model_path,
            domain="retail",
            source=open_source("packaged"),
            chat=ChatConfig.model_validate(self.chat),
            parser=self.tool_parser,
            style="compact",
            reward=dict(self.reward),
            limits=limits,
        )

    def requests(self, domain: Domain) -> list[list[EpisodeRequest]]:
        """The episodes of every step, samples of a task side by side; the same in every process.

        No customer of the official test tasks appears.
        """
        official = task_users(domain, domain.tasks("test"))
        tasks = sample_tasks(domain, self.tasks * self.steps, self.seed, exclude_users=official)
        episodes = [
            EpisodeRequest(
                task,
                seed=self.seed + 1000 * number + sample,
                stage="benchmark",
                step=number // self.tasks,
                group=number % self.tasks,
                temperature=self.temperature,
            )
            for number, task in enumerate(tasks)
            for sample in range(self.samples)
        ]
        return [episodes[start : start + self.episodes] for start in range(0, len(episodes), self.episodes)]


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
        raw = json.loads(path.read_text())
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


def say(text: str) -> None:
    """Progress, on stderr: stdout belongs to the result."""
    print(text, file=sys.stderr, flush=True)


def side_main(run: Callable[[Workload], Figures], arguments: Sequence[str] | None = None) -> None:
    """The command of a side: read the workload from the first file, write the figures to the second."""
    workload_file, figures_file = map(Path, sys.argv[1:] if arguments is None else arguments)
    try:
        run(Workload(**json.loads(workload_file.read_text()))).write(figures_file)
    except TaudojoError as error:
        say(str(error))
        sys.exit(2)
