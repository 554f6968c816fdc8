"""A run's folder and state: what has been done, what it cost, where it goes on.

    outputs/<run>/  config.yaml  metrics.jsonl  state.json  trajectories/  checkpoint-*/  sft_model/  final_model/
                    merged_model/  summary.json  report.html  curves.png

Every file is written under a temporary name and renamed. Resuming trusts `state.json`, and a checkpoint whose files are those of
its manifest (`checkpoints.py`).
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from envs.errors import TaudojoError
from training.checkpoints import damage, seal
from training.compose import validate
from training.config import RunConfig
from training.learner.group import LearnerGroup

#: Kept for good: later stages, GRPO variants and studies start from them.
SFT_CHECKPOINT, RFT_CHECKPOINT = "checkpoint-sft", "checkpoint-rft"
STARTING_POINTS = (SFT_CHECKPOINT, RFT_CHECKPOINT)


@dataclass
class RunState:
    """What a resumed run needs to know. `done` lists finished stages; `step` belongs to the stage under way."""

    done: list[str] = field(default_factory=list)
    step: int = 0
    stage_seconds: float = 0.0  # spent in the stage under way, for its time budget
    evaluation_seconds: float = 0.0  # of the last evaluation, as long as which the next one is expected to take
    weight_version: int = 0  # of the weights that the engines were given last
    checkpoint: str | None = None  # folder name of the newest whole checkpoint
    kept: list[dict[str, Any]] = field(default_factory=list)  # a `Place` for each checkpoint on disk, oldest first
    best: dict[str, Any] = field(default_factory=dict)  # `name` of the best checkpoint, its `metric` and `value`
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a checkpoint stands in the run: so many stages were done, and so much of the one under way. Learning rate and the
    order of the data follow from it."""

    name: str
    done: int
    step: int
    stage_seconds: float


def _old(checkpoint: Path) -> Path:
    """Where a checkpoint stands while another of its name takes its place."""
    return checkpoint.with_name(f".{checkpoint.name}.old")


class Interrupted(Exception):
    """Ctrl-C (or SIGTERM): the stage stopped at a step boundary and saved its state."""


class RunFolder:
    """`outputs/<name>-<time>`, or an existing one to resume."""

    def __init__(self, path: Path, state: RunState, keep: int = 1, best: str | None = None) -> None:
        self.path, self.state, self.keep, self.best = path, state, keep, best
        self._noted: tuple[int, int, float] | None = None  # stages done, step, and the best's metric there
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
            folder = cls(path.resolve(), RunState(), config.checkpoints.keep, config.checkpoints.best)
            write_atomically(path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            folder.save_state()
        except OSError as error:
            raise TaudojoError(
                f"cannot write the run folder {path}: {error.strerror}; set output_dir to a folder with room"
            ) from error
        return folder

    @classmethod
    def resume(cls, path: Path) -> tuple[RunFolder, RunConfig]:
        """The folder and its own configuration.

        A newest checkpoint that is damaged is set aside, and the run goes back to the one before it.
        """
        for name in ("config.yaml", "state.json"):
            if not (path / name).is_file():
                raise TaudojoError(f"resume={path}: there is no {name}; give the folder of a run, e.g. outputs/grpo-…")
        config = validate(yaml.safe_load((path / "config.yaml").read_text()))
        state = RunState(**json.loads((path / "state.json").read_text()))
        folder = cls(path.resolve(), state, config.checkpoints.keep, config.checkpoints.best)
        folder._go_back_to_a_whole_checkpoint()
        return folder, config

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

    def note(self, stage: str, metrics: Mapping[str, float]) -> None:
        """What was measured at the stage's present step: a checkpoint taken here may be the best."""
        stage_of_best, _, name = (self.best or "").partition("/")
        if stage == stage_of_best and name in metrics:
            self._noted = len(self.state.done), self.state.step, metrics[name]

    def checkpoint(self, name: str, learner: LearnerGroup, extra: dict[str, Any]) -> Path:
        """Writes `checkpoint-<name>` whole or not at all, then drops all but the last `keep`, the best, and the stages' ends.

        The one of this very place, where a stage's last step and its end are two reasons for it, is not written again.
        """
        final = self.path / f"checkpoint-{name.replace('/', '-')}"
        place = Place(final.name, len(self.state.done), self.state.step, self.state.stage_seconds)
        if self.state.checkpoint == final.name and asdict(place) in self.state.kept and final.is_dir():
            return final
        partial = self.path / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            learner.save(partial, extra)
            seal(partial)
        except OSError as error:
            free = shutil.disk_usage(self.path).free
            shutil.rmtree(partial, ignore_errors=True)
            raise TaudojoError(
                f"checkpoint {final} could not be written ({error}; {free / 1e9:.1f} GB free); "
                f"make room and go on with resume={self.path}"
            ) from error
        old = _old(final)
        if final.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)
        partial.replace(final)
        shutil.rmtree(old, ignore_errors=True)
        state = self.state
        before, state.checkpoint = state.checkpoint, final.name
        self._saved_place = (state.step, state.stage_seconds)
        known = [p for p in state.kept if p["name"] != final.name]
        known.append(asdict(place))
        self._compare_with_best(final.name)
        dropped = [p["name"] for p in known if p["name"] not in STARTING_POINTS][: -self.keep]
        dropped = [name for name in dropped if name != state.best.get("name")]
        if before and before not in (*STARTING_POINTS, *(p["name"] for p in known)):  # its place is not known
            dropped.append(before)
        state.kept = [p for p in known if p["name"] not in dropped]
        self.save_state()
        for old in dropped:
            shutil.rmtree(self.path / old, ignore_errors=True)
        return final

    def _compare_with_best(self, name: str) -> None:
        """Where the best's metric was measured at this place and is better than before, this checkpoint is the best."""
        best = self.state.best
        if self.best is None or self._noted is None or self._noted[:2] != (len(self.state.done), self.state.step):
            return
        if best.get("name") == name:  # taken again
            best.clear()
        value = self._noted[2]
        sign = -1 if self.best.endswith("loss") else 1
        if math.isfinite(value) and (not best or sign * value > sign * best["value"]):
            best.update(name=name, metric=self.best, value=value)

    def best_checkpoint(self) -> Path | None:
        return self.path / self.state.best["name"] if self.state.best else None

    def _go_back_to_a_whole_checkpoint(self) -> None:
        """Checks the newest checkpoint, and where it is damaged those before it; says what it found.

        The run goes back to the place of the newest whole one, and without any to its beginning: stages after it are not in the
        weights and are taken again.
        """
        state = self.state
        found = False
        while place := next((Place(**p) for p in state.kept if p["name"] == state.checkpoint), None):
            folder = self.path / place.name
            if _old(folder).is_dir() and not folder.is_dir():  # the process ended between the two renames of `checkpoint`
                _old(folder).replace(folder)
            wrong = damage(folder)
            if wrong is None:
                if found:
                    del state.done[place.done :]
                    self._saved_place = state.step, state.stage_seconds = place.step, place.stage_seconds
                break
            found = True
            print(f"{place.name} is damaged: {wrong}", flush=True)
            if folder.is_dir():
                aside = folder.with_name(f"damaged-{place.name}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.replace(aside)
            names = [p["name"] for p in state.kept]
            at = names.index(place.name)
            state.kept = [p for p in state.kept if p["name"] != place.name]
            if state.best.get("name") == place.name:
                state.best.clear()
            state.checkpoint = names[at - 1] if at else None
        if not found:
            return
        if state.checkpoint is None:
            state.done.clear()
            self._saved_place = state.step, state.stage_seconds = 0, 0.0
        self.save_state()
        print(f"going back to {state.checkpoint or 'the beginning of the run'}", flush=True)

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
