"""Progress that a person can follow: a rich bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(width=None if sys.stdout.isatty() else 120)
LINE_EVERY_S = 20.0


class Bar:
    """`update(done, note)`: `done` of `total`, in whatever unit the stage counts."""

    def __init__(self, label: str, total: float, progress: Progress | None) -> None:
        self._label, self._total, self._progress = label, total, progress
        self._task = progress.add_task(label, total=total, note="") if progress else None
        self._begin = self._printed = time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=min(done, self._total), note=note)
            return
        now = time.monotonic()
        if now - self._printed >= LINE_EVERY_S:
            share = min(1.0, done / self._total)
            left = f", about {(now - self._begin) * (1 / share - 1):.0f} s left" if share > 0.01 else ""
            console.print(f"  {self._label} {100 * share:.0f}%{left}  {note}", soft_wrap=True)
            self._printed = now


@contextmanager
def bar(label: str, total: float) -> Iterator[Bar]:
    """A bar with percentage, elapsed and remaining time, and the stage's own note."""
    if not console.is_terminal:
        yield Bar(label, total, None)
        return
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        yield Bar(label, total, progress)


def shown(path: Path) -> str:
    """The path as a user would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
