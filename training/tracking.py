"""Where a run's numbers go: `metrics.jsonl` always, wandb (offline unless asked otherwise) beside it; and episodes to read."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from envs.errors import TaudojoError
from rollouts.samples import Row, conversation, facts, print_conversation, print_samples, sample_row, spread
from rollouts.trajectory import Trajectory
from training.config import TrackingSection
from training.progress import console
from training.run import write_atomically

#: How long the end of a run waits for the dashboard that its beginning asked for.
_DASHBOARD_S = 20.0


def drop_rows_to_come(file: Path, stages: Sequence[str], step: int) -> None:
    """Takes out of `metrics.jsonl` what a resumed run writes again: the first of `stages` from `step` on, and the others.

    A round of RFT keeps its row: its episodes are on disk and not played again. Half a line is what a killed run left.
    """
    if not file.is_file():
        return
    lines = file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not _is_to_come(line, stages, step)]
    if kept != lines:
        write_atomically(file, "".join(kept))


def _is_to_come(line: str, stages: Sequence[str], step: int) -> bool:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return True
    if row["stage"] not in stages or "round" in row["metrics"]:
        return False
    return row["stage"] != stages[0] or row["step"] >= step


class Tracker:
    """`log(stage, step, metrics, episodes)` appends one line; wandb gets the same under `stage/name`.

    Of the episodes some are shown, as the settings say: rows of a table under `samples`, and whole `conversations`.
    """

    def __init__(self, folder: Path, settings: TrackingSection, name: str, config: dict[str, Any]) -> None:
        self._path = folder / "metrics.jsonl"
        self._settings = settings
        self._begin = time.time()
        self._episodes = 0
        self._wandb = None if settings.mode == "none" else _Wandb(folder, settings, name, config)

    def log(self, stage: str, step: int, metrics: dict[str, float], episodes: Sequence[Trajectory] = ()) -> None:
        shown = self._shown(stage, step, episodes)
        line = {
            "time_s": round(time.time() - self._begin, 2),
            "stage": stage,
            "step": step,
            "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)},
            **shown.to_json(),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown.print(stage, step)
        if self._wandb is not None:
            self._wandb.log(stage, step, metrics, shown)

    def close(self) -> None:
        if self._wandb is not None:
            self._wandb.close()

    def _shown(self, stage: str, step: int, episodes: Sequence[Trajectory]) -> _Shown:
        """Those of the episodes whose turn it is to be read."""
        rows, whole = self._settings.sample_steps, self._settings.conversation_episodes
        first, self._episodes = self._episodes, self._episodes + len(episodes)
        shown = _Shown()
        if rows and step % rows == 0:
            shown.samples = [sample_row(t) for t in spread(episodes, self._settings.sample_rows)]
        if whole:
            due = [t for number, t in enumerate(episodes, first) if number % whole == 0]
            shown.conversations = [{**facts(t), "messages": conversation(t)} for t in due]
        return shown


@dataclass
class _Shown:
    """Episodes to read, as plain data."""

    samples: list[Row] = field(default_factory=list)
    conversations: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The keys that are not empty."""
        return {name: value for name, value in vars(self).items() if value}

    def print(self, stage: str, step: int) -> None:
        if self.samples:
            print_samples(console, f"{stage}, step {step}: from the worst to the best", self.samples)
        for one in self.conversations:
            title = f"{stage}, step {step}: task {one['task']}, reward {one['reward']:+.2f}, {one['stop']}"
            print_conversation(console, title, one["messages"])


class _Wandb:
    """The run at Weights & Biases."""

    def __init__(self, folder: Path, settings: TrackingSection, name: str, config: dict[str, Any]) -> None:
        import wandb

        self._stages: set[str] = set()
        self._dashboard: Thread | None = None
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            self._run = wandb.init(
                mode=settings.mode,
                project=settings.project,
                entity=settings.entity,
                name=name,
                dir=str(folder),
                config=config,
                settings=wandb.Settings(console="off", x_disable_stats=True),
            )
        except wandb.errors.Error as error:
            raise TaudojoError(
                f"wandb did not start ({str(error).splitlines()[0]}); run `wandb login`, or use tracking=offline or tracking=none"
            ) from error
        if settings.mode == "online" and settings.dashboard:
            where = (self._run.entity, self._run.project)
            self._dashboard = Thread(target=_offer_dashboard, args=where, daemon=True)
            self._dashboard.start()

    def log(self, stage: str, step: int, metrics: dict[str, float], shown: _Shown) -> None:
        import wandb

        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        numbers: dict[str, Any] = {f"{stage}/{name}": value for name, value in metrics.items()} | {f"{stage}/step": step}
        if shown.samples:
            columns = list(shown.samples[0])
            rows = [[step, *(row[column] for column in columns)] for row in shown.samples]
            numbers[f"{stage}/samples"] = wandb.Table(["step", *columns], rows)
        if shown.conversations:
            talk = [
                [step, one["task"], one["reward"], one["stop"], number, message["role"], message["text"]]
                for one in shown.conversations
                for number, message in enumerate(one["messages"])
            ]
            columns = ["step", "task", "reward", "stop", "message", "role", "text"]
            numbers[f"{stage}/conversations"] = wandb.Table(columns, talk)
        self._run.log(numbers)

    def close(self) -> None:
        if self._dashboard is not None:
            self._dashboard.join(_DASHBOARD_S)
        self._run.finish()


def default_entity() -> str:
    """Whose projects wandb takes where none is named. Raises TaudojoError where nobody is logged in."""
    import wandb

    try:
        entity = wandb.Api().default_entity
    except (wandb.errors.Error, OSError) as error:
        raise TaudojoError(f"wandb does not answer ({str(error).splitlines()[0]}); run `wandb login`") from error
    if not entity:
        raise TaudojoError("wandb knows no default entity; name it with --entity")
    return str(entity)


def _offer_dashboard(entity: str, project: str) -> None:
    """Makes the project's dashboard if it has none. That it could not be made is a warning: the run does not need it."""
    from training.dashboard import ensure_dashboard, first_line

    try:
        url = ensure_dashboard(entity, project)
    except Exception as error:  # whatever a service on the network comes up with
        console.print(f"the wandb dashboard was not made: {first_line(error)}", markup=False, soft_wrap=True)
        return
    console.print(f"wandb dashboard: {url}", markup=False, soft_wrap=True)
