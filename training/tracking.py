"""Where a run's numbers go: `metrics.jsonl` always, wandb (offline unless asked otherwise) beside it."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from envs.errors import TaudojoError
from training.config import TrackingSection


class Tracker:
    """`log(stage, step, metrics)` appends one line; wandb gets the same under `stage/name`."""

    def __init__(self, folder: Path, settings: TrackingSection, name: str, config: dict[str, Any]) -> None:
        self._path = folder / "metrics.jsonl"
        self._begin = time.time()
        self._run: Any = None
        if settings.mode != "none":
            self._run = _start_wandb(folder, settings, name, config)

    def log(self, stage: str, step: int, metrics: dict[str, float]) -> None:
        line = {
            "time_s": round(time.time() - self._begin, 2),
            "stage": stage,
            "step": step,
            "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)},
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._run is not None:
            self._run.log({f"{stage}/{name}": value for name, value in metrics.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _start_wandb(folder: Path, settings: TrackingSection, name: str, config: dict[str, Any]) -> Any:
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        return wandb.init(
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
