"""`summary.json`: what a run was and what came of it, with the keys that other programs read."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from envs.data import DataSource
from training.config import RunConfig
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
