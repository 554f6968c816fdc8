"""What a run was and what came of it: `summary.json`, with the keys that other programs read, and the closing table."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from envs.data import DataSource
from training.config import RunConfig
from training.progress import console, shown
from training.run import RunFolder, write_atomically


def write_summary(folder: RunFolder, config: RunConfig, source: DataSource, model_path: str) -> dict[str, Any]:
    """Writes and returns it. Rates are fractions; a stage that was not run has no block."""
    state = folder.state
    seconds = {name: state.seconds.get(name, 0.0) for name in ("setup", "sft", "rft", "grpo", "eval", "export", "total")}
    summary = {
        "version": package_version(),
        "data": {"source": source.source, "version": source.version},
        "model": config.model.path or config.model.name,
        "user": config.user.name,
        "prompt": config.env.prompt,
        "seed": config.seed,
        **state.blocks,
        "seconds": seconds,
        "tokens": dict(state.tokens),
    }
    write_atomically(folder.path / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def package_version() -> str:
    try:
        return version("taudojo")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"


def print_summary(folder: RunFolder) -> None:
    """The closing table."""
    table = Table(title="fractions, 0 to 1")
    for column in ("", "well-formed", "action F1", "exact", "write DB match", "do-nothing", "official"):
        table.add_column(column)
    keys = ("well_formed", "action_f1", "action_exact", "write_db_match", "noop_write_db_match", "official_reward")
    for stage, blocks in folder.state.blocks.items():
        for name, block in blocks.items():
            table.add_row(f"{stage} {name}", *(f"{block[k]:.3f}" if block[k] is not None else "–" for k in keys))
    if folder.state.blocks:
        console.print(table)
    seconds = folder.state.seconds
    console.print(
        "seconds: "
        + ", ".join(f"{name} {seconds[name]:.0f}" for name in ("setup", "sft", "rft", "grpo", "eval", "total") if name in seconds)
    )
    console.print(f"report: {shown(folder.path / 'report.html')}", soft_wrap=True)
