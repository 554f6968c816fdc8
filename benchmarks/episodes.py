"""What both sides of the environment benchmark are given, and the figures that they bring back.

A side is a module with `run(workload, tell) -> EpisodeFigures` and a call of `side_main(run)`. It lives in a process of its own;
what goes in and out are two JSON files, and on stdout a line `played/all` now and then. A peer runs in a Python that has none of
our packages, so nothing here needs more than the standard library.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

from envs.errors import TaudojoError

#: Given the number of episodes that were played, and of all.
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class EpisodeWorkload:
    """The reference solutions of a domain's base tasks.

    data_root: The folder that contains `domains/`; `source` and `version` say what it is.
    limit: Take so many tasks, in the order of the task file; None is all.
    passes: How often the tasks are played.
    environments: How many live environments share the memory that is measured.
    """

    domain: str
    data_root: str
    source: str
    version: str
    limit: int | None = None
    passes: int = 1
    environments: int = 1000

    def raw_tasks(self) -> list[dict[str, Any]]:
        """The base tasks as the task file has them: those of `Domain.tasks("base")`, for a side that has no `Domain`."""
        folder = Path(self.data_root, "domains", self.domain)
        base = set(map(str, json.loads((folder / "split_tasks.json").read_text(encoding="utf-8"))["base"]))
        tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
        return [task for task in tasks if str(task["id"]) in base][: self.limit]


@dataclass(frozen=True)
class PassTimes:
    """Seconds of an episode, or of one pass over all tasks, by phase."""

    reset_s: float
    replay_s: float
    reward_s: float

    @classmethod
    def sum(cls, episodes: Iterable[PassTimes]) -> PassTimes:
        """The pass that these episodes make up."""
        resets, replays, rewards = zip(*((times.reset_s, times.replay_s, times.reward_s) for times in episodes), strict=True)
        return cls(sum(resets), sum(replays), sum(rewards))

    @property
    def total_s(self) -> float:
        return self.reset_s + self.replay_s + self.reward_s


@dataclass(frozen=True)
class EpisodeFigures:
    """What a side measured: means over the episodes of one pass.

    replay_us: An episode's calls together. passed: Episodes that got the full reward. first_pass_us: An episode of the first
    pass, which makes what later ones find. None is what a side did not measure.
    """

    episodes: int
    calls: int
    passed: int
    reset_us: float
    replay_us: float
    reward_us: float
    first_pass_us: float | None = None
    bytes_per_env: float | None = None

    @classmethod
    def of(
        cls,
        passes: Sequence[PassTimes],
        *,
        episodes: int,
        calls: int,
        passed: int,
        first_pass: PassTimes | None = None,
        bytes_per_env: float | None = None,
    ) -> EpisodeFigures:
        """The figures of the pass of median length: a real one, so that its phases belong together."""
        median = median_low(times.total_s for times in passes)
        times = next(times for times in passes if times.total_s == median)
        us = 1e6 / episodes
        return cls(
            episodes=episodes,
            calls=calls,
            passed=passed,
            reset_us=times.reset_s * us,
            replay_us=times.replay_s * us,
            reward_us=times.reward_s * us,
            first_pass_us=None if first_pass is None else first_pass.total_s * us,
            bytes_per_env=bytes_per_env,
        )

    @property
    def episode_us(self) -> float:
        return self.reset_us + self.replay_us + self.reward_us

    @property
    def tool_call_us(self) -> float | None:
        """The replay's share of one call; None where the reference solutions call nothing."""
        return self.replay_us * self.episodes / self.calls if self.calls else None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> EpisodeFigures:
        return cls(**json.loads(path.read_text()))


def median_figures(rounds: Iterable[EpisodeFigures]) -> EpisodeFigures:
    """The round of median length (the shorter one of an even number), whole."""
    rounds = list(rounds)
    median = median_low(figures.episode_us for figures in rounds)
    return next(figures for figures in rounds if figures.episode_us == median)


def side_main(run: Callable[[EpisodeWorkload, Tell], EpisodeFigures], arguments: Sequence[str] | None = None) -> None:
    """The command of a side: read the workload from the first file, write the figures to the second."""
    workload_file, figures_file = map(Path, sys.argv[1:] if arguments is None else arguments)
    try:
        run(EpisodeWorkload(**json.loads(workload_file.read_text())), _tell).write(figures_file)
    except TaudojoError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _tell(played: int, episodes: int) -> None:
    print(f"{played}/{episodes}", flush=True)
