"""GRPO steps, ours against TRL's GRPOTrainer.

    python -m benchmarks.grpo --model outputs/<run>/sft_model
    python -m benchmarks.grpo --steps 3 grpo.tasks_per_step=2 env.max_turn_tokens=64      # any override of a training run

Both sides start from the same checkpoint and play whole conversations on the same generated tasks with the configuration of
`+experiment=grpo`: the same prompt, token limits and reward. A step samples groups, scores them, updates, and brings the new
weights to where sampling happens. Each side runs alone, in a process of its own, ours first. Progress goes to stderr; the last
line on stdout is JSON:

    {"ours_s", "trl_s", "ours_tokens", "trl_tokens", "ratio", "trl_mode", "split": {"ours": {…}, "trl": {…}}}

`*_s` and `*_tokens` belong to the step of median speed, `ratio` is our trained tokens per second over TRL's, and `split` has
the seconds of rollout, reward, update and sync. How TRL is set up stands in `benchmarks.peers.trl_grpo`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.process import run_command, run_module, say
from benchmarks.workload import PHASES, Figures, StepFigures, Workload
from envs.errors import TaudojoError
from training.main import with_device_defaults
from training.models import check_folder

LIMIT_S = 40 * 60

OURS, TRL = "benchmarks.ours_grpo", "benchmarks.peers.trl_grpo"


def compare(ours: Figures, trl: Figures) -> dict[str, Any]:
    """The result line."""
    mine, theirs = ours.median_step, trl.median_step
    return {
        "ours_s": round(mine.step_s, 2),
        "trl_s": round(theirs.step_s, 2),
        "ours_tokens": mine.tokens,
        "trl_tokens": theirs.tokens,
        "ratio": round(mine.tokens_per_s / theirs.tokens_per_s, 3),
        "trl_mode": trl.mode,
        "split": {"ours": _split(mine), "trl": _split(theirs)},
    }


def ensure_checkpoint(model: str | None, outputs: Path = Path("outputs")) -> Path:
    """The folder of the SFT checkpoint to start from: the given one, else the newest `outputs/*/sft_model`.

    Raises:
        TaudojoError: there is none, or it is not a complete Hugging Face folder.
    """
    if model is not None:
        folder = Path(model).expanduser()
        if not folder.exists():
            raise TaudojoError(f"--model {model}: no such folder (seen from {Path.cwd()}); give the sft_model folder of a run.")
        return check_folder(folder).resolve()
    found = sorted(outputs.glob("*/sft_model/config.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise TaudojoError(
            f"{outputs}/ has no run with an sft_model; "
            "train one with `python -m training.main +experiment=grpo`, or give --model."
        )
    return check_folder(found[-1].parent).resolve()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grpo", description="GRPO steps, ours against TRL's.")
    parser.add_argument("--model", help="SFT checkpoint, a Hugging Face folder (default: the newest outputs/*/sft_model)")
    parser.add_argument("--steps", type=int, default=1, help="timed steps (%(default)s)")
    parser.add_argument("overrides", nargs="*", help="as for training.main, e.g. grpo.samples_per_task=8")
    return parser.parse_args(arguments)


def busy_warning(load: float, cores: int) -> str | None:
    """A sentence when other programs use the cores: both sides compute with threads that wait for each other."""
    if load < 0.5 * cores:
        return None
    return (
        f"Other programs are using this machine (load {load:.1f} on {cores} cores): these figures will not hold; end them first."
    )


def run_side(module: str, work: Workload, limit_s: float) -> Figures:
    """Run a side in a process of its own and read its figures.

    Raises:
        TaudojoError: it failed, or was not done after `limit_s`.
    """
    advice = "use fewer --steps or a smaller grpo.tasks_per_step, or a machine with nothing else to do."
    return Figures.of(run_module(module, asdict(work), limit_s, advice))


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: measure(arguments))


def measure(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Runs one side after the other; both together within `LIMIT_S`."""
    start = time.monotonic()
    if find_spec("trl") is None:
        raise TaudojoError("TRL is not installed; install the extra `bench` (`make setup` does).")
    asked = parse_arguments(arguments)
    work = Workload(str(ensure_checkpoint(asked.model)), asked.steps, tuple(with_device_defaults(asked.overrides)))
    grpo = work.config.grpo
    if busy := busy_warning(os.getloadavg()[0], os.cpu_count() or 1):
        say(busy)
    figures = []
    for name, module in (("ours", OURS), ("TRL", TRL)):
        say(f"{name}: {work.steps} step(s) of {grpo.tasks_per_step} × {grpo.samples_per_task} episodes, {work.model_path}")
        figures.append(run_side(module, work, LIMIT_S - (time.monotonic() - start)))
    for name, side in zip(("ours", "TRL"), figures, strict=True):
        speeds = ", ".join(f"{step.tokens_per_s:.0f}" for step in side.steps)
        say(f"{name}: {speeds} tokens/s by step, {side.setup_s:.0f} s to start")
    return compare(*figures)


def _split(step: StepFigures) -> dict[str, float | None]:
    return {phase: None if (value := getattr(step, phase)) is None else round(value, 2) for phase in PHASES}


if __name__ == "__main__":
    sys.exit(main())
