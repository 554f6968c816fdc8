"""The trajectory store: every episode is a line of JSON, appended as soon as it has ended, and read back as an object.

    store = TrajectoryStore(folder)
    store.append(trajectory, index=0)                 # while the step is played; a crash loses nothing that ended before it
    store.write("grpo", 3, trajectories)              # the step is over: all of it is there
    for trajectory in read_folder(folder, "grpo"): …  # datasets.Dataset.from_generator(rows, gen_kwargs={"folder": folder})

One file for each stage, step and worker: `<stage>-<step>-w<worker>.jsonl.zst`, each line a Zstandard frame of its own, so that
`zstdcat` reads it and a torn end costs one line; `.jsonl` where the package zstandard is missing. `schema` in each line says how
to read it.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from envs.errors import TaudojoError
from rollouts.trajectory import Trajectory

log = logging.getLogger(__name__)

#: Zstandard's level: 70 µs an episode; higher ones save little.
_LEVEL = 3


class TrajectoryStore:
    """The files of a run. A slash in a stage's name is written as a dash.

    compress: False writes plain lines; None compresses where zstandard is installed.
    """

    def __init__(self, folder: Path, compress: bool | None = None) -> None:
        self.folder = folder
        self.compress = find_spec("zstandard") is not None if compress is None else compress
        self._stored: dict[tuple[str, int], set[int]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, stage: str, step: int, worker: int = 0) -> Path:
        """Where this worker's episodes of the step are."""
        return self.folder / f"{_stem(stage, step)}-w{worker}.jsonl{'.zst' if self.compress else ''}"

    def append(self, trajectory: Trajectory, index: int) -> None:
        """Stores one episode, number `index` of its step. A step that is begun anew replaces what is there."""
        stage, step = trajectory.stage, trajectory.step
        stored = self._stored.get((stage, step))
        if stored is None or index in stored:
            self.remove(stage, step)
            stored = self._stored[stage, step] = set()
        with self.path(stage, step, trajectory.worker).open("ab") as file:
            file.write(self._line(trajectory, index))
        stored.add(index)

    def write(self, stage: str, step: int, trajectories: Sequence[Trajectory]) -> Path:
        """Stores a whole step, unless `append` has; returns its first file."""
        if self._stored.get((stage, step)) != set(range(len(trajectories))):
            self._replace(stage, step, trajectories)
            self._stored[stage, step] = set(range(len(trajectories)))
        return (step_files(self.folder, stage, step) or [self.path(stage, step)])[0]

    def remove(self, stage: str, step: int) -> None:
        """Forgets a step."""
        for path in step_files(self.folder, stage, step):
            path.unlink()
        self._stored.pop((stage, step), None)

    def read(self, stage: str, step: int) -> list[Trajectory]:
        """The step's episodes, in the order of their requests."""
        return _in_order(step_files(self.folder, stage, step))

    def _replace(self, stage: str, step: int, trajectories: Sequence[Trajectory]) -> None:
        lines: dict[Path, list[bytes]] = {} if trajectories else {self.path(stage, step): []}
        for index, trajectory in enumerate(trajectories):
            lines.setdefault(self.path(stage, step, trajectory.worker), []).append(self._line(trajectory, index))
        for path, content in lines.items():
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(b"".join(content))
            temporary.replace(path)
        for path in step_files(self.folder, stage, step):
            if path not in lines:
                path.unlink()

    def _line(self, trajectory: Trajectory, index: int) -> bytes:
        raw = trajectory.to_json()
        line = json.dumps({"schema": raw.pop("schema"), "index": index, **raw}, ensure_ascii=False).encode() + b"\n"
        if not self.compress:
            return line
        import zstandard

        return zstandard.ZstdCompressor(_LEVEL, write_checksum=True).compress(line)


def step_files(folder: Path, stage: str, step: int) -> list[Path]:
    """The files of one step."""
    return _files(folder, _stem(stage, step))


def read_file(path: Path) -> Iterator[Trajectory]:
    """The episodes of a file, as they stand in it. Where `<stage>-<step>.jsonl` is not there, those of the step's files.

    Raises:
        ValueError: a line is damaged; it names file and line number. A last line that was torn off is left out, and logged.
        FileNotFoundError: there is no such file and no such step.
    """
    if not path.exists():
        files = _files(path.parent, path.name.removesuffix(".zst").removesuffix(".jsonl"))
        if not files:
            raise FileNotFoundError(2, "no such trajectory file", str(path))
        yield from _in_order(files)
        return
    for _, trajectory in _indexed(path):
        yield trajectory


def read_folder(folder: Path, stage: str | None = None) -> Iterator[Trajectory]:
    """All episodes of a run's folder, or of one stage; file by file, so that they need not fit into memory."""
    for path in trajectory_files(folder, stage):
        yield from read_file(path)


def rows(folder: str | Path, stage: str | None = None) -> Iterator[dict[str, Any]]:
    """The same as plain JSON objects, for whoever builds a table of them."""
    for path in trajectory_files(Path(folder), stage):
        for _, line in json_lines(path):
            yield json.loads(line)


def trajectory_files(folder: Path, stage: str | None = None) -> list[Path]:
    """All trajectory files, or those of one stage."""
    prefix = f"{stage.replace('/', '-')}-" if stage else ""
    return sorted(p for p in folder.glob("*.jsonl*") if _is_trajectories(p) and _of_stage(p, prefix))


def json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every whole line; a torn last one is logged and left out."""
    with _opened(path) as file:
        rest = b""
        number = 0
        while True:
            try:
                block = file.read(1 << 20)
            except _torn_errors(path) as error:
                raise ValueError(f"{path}:{number + 1}: not a trajectory ({error})") from error
            if not block:
                break
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                number += 1
                yield number, line.decode("utf-8", "replace")
    if rest.strip():
        log.warning("%s: the last line was cut off and is left out", path)


def _indexed(path: Path) -> Iterator[tuple[int, Trajectory]]:
    for number, line in json_lines(path):
        try:
            raw = json.loads(line)
            yield raw.get("index", number - 1), Trajectory.from_json(raw)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path}:{number}: not a trajectory ({error})") from error


def _in_order(files: Sequence[Path]) -> list[Trajectory]:
    found = [pair for path in files for pair in _indexed(path)]
    return [trajectory for _, trajectory in sorted(found, key=lambda pair: pair[0])]


def _opened(path: Path) -> IO[bytes]:
    if path.suffix != ".zst":
        return path.open("rb")
    if find_spec("zstandard") is None:
        raise TaudojoError(f"{path} is compressed, and the package zstandard is missing: pip install zstandard.")
    import zstandard

    return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True))


def _torn_errors(path: Path) -> tuple[type[Exception], ...]:
    if path.suffix != ".zst":
        return ()
    import zstandard

    return (zstandard.ZstdError,)


def _stem(stage: str, step: int) -> str:
    return f"{stage.replace('/', '-')}-{step:04d}"


def _files(folder: Path, stem: str) -> list[Path]:
    alone = [folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.zst"]
    by_worker = [p for p in folder.glob(f"{stem}-w*.jsonl*") if _is_trajectories(p)]
    return sorted([p for p in alone if p.is_file()] + by_worker)


def _is_trajectories(path: Path) -> bool:
    return path.name.endswith((".jsonl", ".jsonl.zst")) and not path.name.startswith(".")


def _of_stage(path: Path, prefix: str) -> bool:
    return path.name.startswith(prefix) and (not prefix or path.name[len(prefix) :][:1].isdigit())
