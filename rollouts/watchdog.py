"""What is stuck where: every episode says what it waits for, and the scheduler tells when something waits too long.

    place = Place(task_id)
    place.waits_for("engine")           # in the episode
    overdue(places, limit_s=60)         # in the worker: those that have stood still for so long

Deadlines end every wait of an episode. A worker that does not even report (its event loop is blocked) is replaced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

#: How many of the episodes that stand still are named.
_NAMED = 5


@dataclass
class Place:
    """Where an episode is: `engine`, `customer`, or `world` (tools, parser, reward: this process's own work)."""

    task_id: str
    doing: str = "world"
    since: float = field(default_factory=time.monotonic)

    def waits_for(self, what: str) -> None:
        self.doing, self.since = what, time.monotonic()


@dataclass(frozen=True)
class Standstill:
    """An episode that has waited `seconds` for the same thing."""

    task_id: str
    doing: str
    seconds: float

    def __str__(self) -> str:
        return f"task {self.task_id} waits for the {self.doing} since {self.seconds:.0f} s"


def overdue(places: Iterable[Place], limit_s: float) -> list[Standstill]:
    """Those that have not moved for `limit_s`, the longest first."""
    now = time.monotonic()
    found = [Standstill(p.task_id, p.doing, now - p.since) for p in places if now - p.since > limit_s]
    return sorted(found, key=lambda standstill: -standstill.seconds)


def tell(worker: int, standstills: Sequence[Standstill]) -> None:
    """One warning about a worker's episodes that stand still."""
    if standstills:
        more = f", and {len(standstills) - _NAMED} more" if len(standstills) > _NAMED else ""
        log.warning("rollout worker %d: %s%s", worker, "; ".join(map(str, standstills[:_NAMED])), more)


def tell_silent(worker: int, seconds: float, tasks: Sequence[str]) -> None:
    """A worker does not report and is replaced."""
    log.warning(
        "rollout worker %d has not reported for %.0f s and is replaced; its %d episode(s) are played again: %s",
        worker,
        seconds,
        len(tasks),
        ", ".join(tasks[:_NAMED]) + (", …" if len(tasks) > _NAMED else ""),
    )
