"""What a run's `profile.jsonl` says: times by type and kind, shares of the wall time, the slowest tasks and episodes; a trace.

    python -m rollouts.profile outputs/<run>/profile.jsonl

The trace (`profile.trace.json` beside the file, or `--trace`) opens in Perfetto, https://ui.perfetto.dev, or chrome://tracing:
one process for each that played, one row for each episode in flight, and under a step what happened in it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STEP = "step_complete"


@dataclass(frozen=True)
class Event:
    """One line. Times in microseconds since 1970."""

    type: str
    task: str
    model: str
    kind: str
    start_us: int
    end_us: int
    process: int
    episode: int

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Event:
        start = int(raw["start_us"])
        end = start + round(float(raw["duration_ms"]) * 1000)
        if end < start:
            raise ValueError("a negative duration")
        return cls(
            type=str(raw["type"]),
            task=str(raw["task"]),
            model=str(raw["model"]),
            kind=str(raw["kind"]),
            start_us=start,
            end_us=end,
            process=int(raw["process"]),
            episode=int(raw["episode"]),
        )

    @property
    def ms(self) -> float:
        return (self.end_us - self.start_us) / 1000


@dataclass(frozen=True)
class Summary:
    """The times of one type or kind, in milliseconds.

    `share`: the part of the wall time in which at least one was under way. `in_flight`: how many were, on average.
    """

    name: str
    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    total: float
    share: float
    in_flight: float


@dataclass(frozen=True)
class Episode:
    """One episode: from its first event to the end of its last. `parts`: type → milliseconds, steps left out."""

    task: str
    process: int
    number: int
    start_us: int
    end_us: int
    parts: dict[str, float]

    @property
    def ms(self) -> float:
        return (self.end_us - self.start_us) / 1000


def read_events(path: Path) -> tuple[list[Event], int]:
    """The events of a file in the order of their beginnings, and how many lines were damaged (a killed process cuts its last)."""
    events: list[Event] = []
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                events.append(Event.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError, OverflowError):
                damaged += 1
    return sorted(events, key=lambda event: (event.start_us, -event.end_us)), damaged


def wall_us(events: Sequence[Event]) -> int:
    """From the first beginning to the last end."""
    return max(e.end_us for e in events) - min(e.start_us for e in events) if events else 0


def covered_us(events: Iterable[Event]) -> int:
    """The time in which at least one of these was under way. `events` in the order of their beginnings."""
    covered, until = 0, -1
    for event in events:
        covered += max(0, event.end_us - max(event.start_us, until))
        until = max(until, event.end_us)
    return covered


def summarise(name: str, events: Sequence[Event], wall: int) -> Summary:
    """`events` in the order of their beginnings, at least one; `wall` in microseconds."""
    times = [event.ms for event in events]
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    total = sum(times)
    share, in_flight = (covered_us(events) / wall, total * 1000 / wall) if wall else (0.0, 0.0)
    return Summary(name, len(times), total / len(times), p50, p95, p99, total, share, in_flight)


def by_type(events: Sequence[Event]) -> list[Summary]:
    """A summary for each type, the largest total first; steps, which enclose the others, last."""
    return _grouped(events, [event.type for event in events], wall_us(events))


def by_kind(events: Sequence[Event]) -> list[Summary]:
    """A summary for each type, kind and model."""
    return _grouped(events, [f"{event.type} {event.kind} ({event.model})" for event in events], wall_us(events))


def episodes_of(events: Sequence[Event]) -> list[Episode]:
    """The episodes, the longest first."""
    grouped: dict[tuple[int, int, str], list[Event]] = defaultdict(list)
    for event in events:
        grouped[event.process, event.episode, event.task].append(event)
    episodes = []
    for (process, number, task), own in grouped.items():
        parts: dict[str, float] = defaultdict(float)
        for event in own:
            if event.type != STEP:
                parts[event.type] += event.ms
        episodes.append(Episode(task, process, number, own[0].start_us, max(e.end_us for e in own), dict(parts)))
    return sorted(episodes, key=lambda episode: -episode.ms)


@dataclass(frozen=True)
class TaskTimes:
    """The episodes of one task, in milliseconds."""

    task: str
    episodes: int
    mean: float
    longest: float


def tasks_of(episodes: Iterable[Episode]) -> list[TaskTimes]:
    """The tasks, those whose episodes take longest on average first."""
    times: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        times[episode.task].append(episode.ms)
    tasks = [TaskTimes(task, len(of_task), sum(of_task) / len(of_task), max(of_task)) for task, of_task in times.items()]
    return sorted(tasks, key=lambda task: -task.mean)


def chrome_trace(events: Sequence[Event]) -> dict[str, Any]:
    """The Trace Event Format: complete events in microseconds after the first, one thread for each episode in flight."""
    first = min((event.start_us for event in events), default=0)
    lanes = _lanes(episodes_of(events))
    rows: list[dict[str, Any]] = []
    for process in sorted({event.process for event in events}):
        rows.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": f"process {process}"}})
    for process, lane in sorted({(event.process, lanes[event.process, event.episode, event.task]) for event in events}):
        rows.append({"ph": "M", "name": "thread_name", "pid": process, "tid": lane, "args": {"name": f"in flight {lane}"}})
    for event in events:
        rows.append(
            {
                "ph": "X",
                "name": f"{event.type} {event.kind}".strip(),
                "cat": event.type,
                "ts": event.start_us - first,
                "dur": event.end_us - event.start_us,
                "pid": event.process,
                "tid": lanes[event.process, event.episode, event.task],
                "args": {"task": event.task, "model": event.model, "kind": event.kind, "episode": event.episode},
            }
        )
    return {"traceEvents": rows, "displayTimeUnit": "ms"}


def _grouped(events: Sequence[Event], names: Sequence[str], wall: int) -> list[Summary]:
    groups: dict[str, list[Event]] = defaultdict(list)
    for name, event in zip(names, events, strict=True):
        groups[name].append(event)
    summaries = [summarise(name, group, wall) for name, group in groups.items()]
    return sorted(summaries, key=lambda s: (s.name.startswith(STEP), -s.total))


def _lanes(episodes: Iterable[Episode]) -> dict[tuple[int, int, str], int]:
    """A row of the trace for each episode, in its process: the lowest that no other is using."""
    lanes: dict[tuple[int, int, str], int] = {}
    free: dict[int, list[int]] = defaultdict(list)
    busy: dict[int, list[tuple[int, int]]] = defaultdict(list)  # process → (end, row)
    opened: dict[int, int] = defaultdict(int)
    for episode in sorted(episodes, key=lambda e: (e.start_us, e.number)):
        process = episode.process
        while busy[process] and busy[process][0][0] <= episode.start_us:
            heapq.heappush(free[process], heapq.heappop(busy[process])[1])
        if not free[process]:
            opened[process] += 1
            heapq.heappush(free[process], opened[process])
        lane = heapq.heappop(free[process])
        heapq.heappush(busy[process], (episode.end_us, lane))
        lanes[process, episode.number, episode.task] = lane
    return lanes


def report(events: Sequence[Event], slowest: int) -> str:
    """The tables as text."""
    episodes = episodes_of(events)
    lines = [f"{len(events)} events of {len(episodes)} episodes in {wall_us(events) / 1e6:.2f} s", ""]
    for title, summaries in (("type", by_type(events)), ("kind", by_kind(events))):
        width = max(len(title), *(len(_shown(s.name)) for s in summaries))
        lines.append(
            f"{title:<{width}} {'count':>8} {'mean ms':>10} {'p50':>10} {'p95':>10} {'p99':>10} {'of wall':>8} {'in flight':>9}"
        )
        lines += [
            f"{_shown(s.name):<{width}} {s.count:>8} {s.mean:>10.2f} {s.p50:>10.2f} {s.p95:>10.2f} {s.p99:>10.2f} "
            f"{s.share:>8.1%} {s.in_flight:>9.2f}"
            for s in summaries
        ]
        lines.append("")
    lines.append("slowest tasks, by the mean of their episodes")
    for task in tasks_of(episodes)[:slowest]:
        of = f"{task.episodes} episode{'s' * (task.episodes > 1)}, longest {task.longest:.0f} ms"
        lines.append(f"  {task.mean:>10.0f} ms  task {_shown(task.task)}  ({of})")
    lines += ["", "slowest episodes"]
    for episode in episodes[:slowest]:
        parts = ", ".join(f"{name} {ms:.0f}" for name, ms in sorted(episode.parts.items(), key=lambda part: -part[1]))
        lines.append(f"  {episode.ms:>10.0f} ms  task {_shown(episode.task)}  ({parts})")
    return "\n".join(lines)


def _shown(name: str) -> str:
    """A name that may be a model's invention, on one line."""
    shown = name if name.isprintable() else repr(name)[1:-1]
    return shown if len(shown) <= 60 else shown[:59] + "…"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rollouts.profile", description="Summarise the event lines of LOG_LEVEL=PROFILE."
    )
    parser.add_argument("file", type=Path, help="a run's profile.jsonl")
    parser.add_argument("--trace", type=Path, help="where the Chrome trace is written (default: beside the file)")
    parser.add_argument("--slowest", type=int, default=10, help="how many of the slowest tasks and episodes are listed (10)")
    options = parser.parse_args(arguments)
    try:
        events, damaged = read_events(options.file)
    except OSError as error:
        print(f"{options.file}: {error.strerror}", file=sys.stderr)
        return 2
    if damaged:
        print(f"{options.file}: {damaged} lines are no events and were left out", file=sys.stderr)
    if not events:
        print(f"{options.file}: no events; play with LOG_LEVEL=PROFILE", file=sys.stderr)
        return 2
    print(report(events, options.slowest))
    trace = options.trace or options.file.with_suffix(".trace.json")
    trace.write_text(json.dumps(chrome_trace(events)), encoding="utf-8")
    print(f"\ntrace for https://ui.perfetto.dev: {trace}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
