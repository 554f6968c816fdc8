"""Where an episode's time goes, one JSON line for each thing that took some: `LOG_LEVEL=PROFILE`.

    {"type": "tool_call", "task": "17", "model": "smollm2_135m", "kind": "get_order_details", "duration_ms": 0.084,
     "start_us": 1795238713512345, "process": 4711, "episode": 12}

`python -m rollouts.profile FILE` reads them. Without a level nothing is opened, and an event costs an empty method call.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.types import Action, AgentTurn

FILE_NAME = "profile.jsonl"

#: `LOG_LEVEL` → the types of event that it writes. Other levels write none.
LEVELS: dict[str, tuple[str, ...]] = {
    "PROFILE": ("llm_call", "expert_call", "tool_call", "user_sim", "evaluator", "step_complete"),
    "USER_JUDGE": ("user_sim", "evaluator"),
}


@dataclass(frozen=True)
class EventSettings:
    """What is written, and where. Plain data: it crosses process borders."""

    file: str
    types: tuple[str, ...]


def event_settings(folder: Path) -> EventSettings | None:
    """What `LOG_LEVEL` (one level, or several joined by commas) asks for, in a run's folder; None for nothing."""
    levels = [level.strip().upper() for level in os.environ.get("LOG_LEVEL", "").split(",")]
    types = dict.fromkeys(kind for level in levels for kind in LEVELS.get(level, ()))
    return EventSettings(str((folder / FILE_NAME).resolve()), tuple(types)) if types else None


class EpisodeEvents:
    """The events of one episode. This one writes nothing."""

    def write(self, type: str, kind: str, since: float, by_user: bool = False) -> None:
        """Something that began at `since` (`time.monotonic()`) is over. It was the policy's doing, or the customer's."""


#: Events of an episode that nobody profiles.
OFF = EpisodeEvents()


class EventLog:
    """Appends to the file, which several processes may share: a line is one write."""

    def __init__(self, settings: EventSettings, model: str, user_model: str = "") -> None:
        """`model` is the policy's name in the lines, `user_model` the customer's."""
        path = Path(settings.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.model, self.user_model = model, user_model
        self.types = frozenset(settings.types)
        self._file = path.open("ab", buffering=0)
        self._clock = time.time() - time.monotonic()
        self._numbers = itertools.count()

    def episode(self, task_id: str) -> EpisodeEvents:
        """The events of a new episode, under its own number in this process."""
        return _Written(self, task_id, next(self._numbers))

    def close(self) -> None:
        self._file.close()

    def append(self, type: str, task: str, model: str, kind: str, episode: int, start: float, end: float) -> None:
        """One line. `start` and `end` by `time.monotonic()`; both are rounded, so that what lay within something still does."""
        start_us, end_us = round((start + self._clock) * 1e6), round((end + self._clock) * 1e6)
        line = {
            "type": type,
            "task": task,
            "model": model,
            "kind": kind,
            "duration_ms": (end_us - start_us) / 1000,
            "start_us": start_us,
            "process": os.getpid(),
            "episode": episode,
        }
        self._file.write(json.dumps(line).encode() + b"\n")


class _Written(EpisodeEvents):
    """The events of one episode, in the file."""

    def __init__(self, log: EventLog, task: str, number: int) -> None:
        self._log, self._task, self._number = log, task, number

    def write(self, type: str, kind: str, since: float, by_user: bool = False) -> None:
        if type in self._log.types:
            model = "expert" if type == "expert_call" else self._log.user_model if by_user else self._log.model
            self._log.append(type, self._task, model, kind, self._number, since, time.monotonic())


def calls_kind(actions: Sequence[Action]) -> str:
    """The `kind` of a message's calls, which are made and timed together: their names."""
    return "+".join(action.name for action in actions)


def turn_kind(turn: AgentTurn) -> str:
    """The `kind` of a step: what the policy wrote."""
    return "parse_failure" if turn.parse_failure else "calls" if turn.actions else "text"
