"""A run's folder and state: what has been done, what it cost, where it goes on.

    outputs/<run>/  config.yaml  metrics.jsonl  state.json  trajectories/  checkpoint-*/  sft_model/  final_model/
                    merged_model/  summary.json  report.html  curves.png

Every file is written under a temporary name and renamed. `state.json` is the only thing that resuming trusts.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from envs.errors import TaudojoError
from training.config import RunConfig, validate
from training.learner.group import LearnerGroup

#: Kept for good: GRPO variants and studies start from it.
SFT_CHECKPOINT = "checkpoint-sft"


@dataclass
class RunState:
    """What a resumed run needs to know. `done` lists finished stages; `step` belongs to the stage under way."""

    done: list[str] = field(default_factory=list)
    step: int = 0
    stage_seconds: float = 0.0  # spent in the stage under way, for its time budget
    checkpoint: str | None = None  # folder name of the newest whole checkpoint
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


class Interrupted(Exception):
    """Ctrl-C (or SIGTERM): the stage stopped at a step boundary and saved its state."""


class RunFolder:
    """`outputs/<name>-<time>`, or an existing one to resume."""

    def __init__(self, path: Path, state: RunState) -> None:
        self.path, self.state = path, state
        self._saved_place = (state.step, state.stage_seconds)

    @classmethod
    def create(cls, config: RunConfig) -> RunFolder:
        """A new folder with `config.yaml`. Raises TaudojoError when it cannot be written."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = Path(config.output_dir) / f"{config.name}-{stamp}"
        number = 1
        while path.exists():
            number += 1
            path = path.with_name(f"{config.name}-{stamp}-{number}")
        try:
            path.mkdir(parents=True)
            folder = cls(path.resolve(), RunState())
            write_atomically(path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            folder.save_state()
        except OSError as error:
            raise TaudojoError(
                f"cannot write the run folder {path}: {error.strerror}; set output_dir to a folder with room"
            ) from error
        return folder

    @classmethod
    def resume(cls, path: Path) -> tuple[RunFolder, RunConfig]:
        """The folder and its own configuration; what is on the command line besides `resume` does not count."""
        for name in ("config.yaml", "state.json"):
            if not (path / name).is_file():
                raise TaudojoError(f"resume={path}: there is no {name}; give the folder of a run, e.g. outputs/grpo-…")
        config = validate(yaml.safe_load((path / "config.yaml").read_text()))
        return cls(path.resolve(), RunState(**json.loads((path / "state.json").read_text()))), config

    def save_state(self) -> None:
        """Writes the state with the newest checkpoint's place: steps after it are not in the weights and are taken again."""
        step, seconds = self._saved_place
        written = asdict(self.state) | {"step": step, "stage_seconds": seconds}
        write_atomically(self.path / "state.json", json.dumps(written, indent=1))

    def finish(self, stage: str) -> None:
        """Marks a stage as done."""
        self.state.done.append(stage)
        self.state.step, self.state.stage_seconds = self._saved_place = 0, 0.0
        self.save_state()

    def checkpoint(self, name: str, learner: LearnerGroup, extra: dict[str, Any]) -> Path:
        """Writes `checkpoint-<name>` whole or not at all, then drops the one before it, unless that is where SFT ended."""
        final = self.path / f"checkpoint-{name}"
        partial = self.path / f".checkpoint-{name}.partial"
        need = 2.2e9
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            learner.save(partial, extra)
        except OSError as error:
            free = shutil.disk_usage(self.path).free
            shutil.rmtree(partial, ignore_errors=True)
            raise TaudojoError(
                f"checkpoint {final} could not be written ({error}; {free / 1e9:.1f} GB free, about {need / 1e9:.1f} GB needed); "
                f"make room and go on with resume={self.path}"
            ) from error
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        before, self.state.checkpoint = self.state.checkpoint, final.name
        self._saved_place = (self.state.step, self.state.stage_seconds)
        self.save_state()
        if before and before not in (final.name, SFT_CHECKPOINT):
            shutil.rmtree(self.path / before, ignore_errors=True)
        return final

    def newest_checkpoint(self) -> Path | None:
        return self.path / self.state.checkpoint if self.state.checkpoint else None

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the block's seconds to `seconds.<what>`, also when it is interrupted."""
        begin = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begin
            self.state.seconds[what] = round(self.state.seconds.get(what, 0.0) + spent, 2)
            self.save_state()

    def count(self, what: str, tokens: float) -> None:
        self.state.tokens[what] = self.state.tokens.get(what, 0) + int(tokens)


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a flag that stages read between steps; the second one ends at once."""

    def __init__(self) -> None:
        self.raised = False

    def __enter__(self) -> StopSignal:
        self._before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _on_signal(self, number: int, frame: object) -> None:
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True
        print("\nstopping after this step and saving; once more to stop at once", flush=True)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
