"""The trajectory store: one file of JSON lines per stage and step, written whole or not at all, read back as objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rollouts.trajectory import Trajectory


class TrajectoryStore:
    """`folder/<stage>-<step>.jsonl`, a slash in the stage's name written as a dash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, stage: str, step: int) -> Path:
        return self.folder / f"{stage.replace('/', '-')}-{step:04d}.jsonl"

    def write(self, stage: str, step: int, trajectories: Sequence[Trajectory]) -> Path:
        path = self.path(stage, step)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            for trajectory in trajectories:
                file.write(json.dumps(trajectory.to_json(), ensure_ascii=False) + "\n")
        temporary.replace(path)
        return path

    def read(self, stage: str, step: int) -> list[Trajectory]:
        return list(read_file(self.path(stage, step)))


def read_file(path: Path) -> Iterator[Trajectory]:
    """Raises ValueError with file and line number where a line is damaged."""
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                yield Trajectory.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}:{number}: not a trajectory ({error})") from error
