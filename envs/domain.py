"""A domain: its policy, its tools, its tasks, and the database that all its environments share.

>>> retail = load_domain("retail", open_source("packaged"))
>>> env = Env(retail, retail.tasks("train")[0], ScriptedUser())
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from envs.data import DataSource
from envs.database import Database
from envs.errors import TaudojoError
from envs.toolkit import ToolKit, ToolType
from envs.types import Task

#: Where a domain's database and tools are defined: module of `(Database class, ToolKit class)`.
DOMAINS: Mapping[str, tuple[str, str, str]] = {
    "retail": ("envs.retail", "RetailDatabase", "RetailTools"),
}


class Domain:
    """One domain from one data source. Made by `load_domain`, which keeps it for the life of the process."""

    def __init__(self, name: str, source: DataSource, database: Database, toolkit: type[ToolKit]) -> None:
        self.name = name
        self.source = source
        self._database = database
        self._toolkit = toolkit

    @cached_property
    def policy(self) -> str:
        """The official policy that the agent must follow."""
        return self.source.file("domains", self.name, "policy.md").read_text(encoding="utf-8")

    @property
    def database(self) -> Database:
        """The database as it is before any episode. For reading."""
        return self._database

    @cached_property
    def write_tools(self) -> frozenset[str]:
        """The tools that change the database."""
        return frozenset(name for name, kind in self._toolkit.tools.items() if kind is ToolType.WRITE)

    @cached_property
    def tool_schemas(self) -> list[dict[str, Any]]:
        """The agent's tools in OpenAI's function format."""
        return self._toolkit.schemas()

    def new_toolkit(self) -> ToolKit:
        """The tools on an unchanged database; microseconds."""
        return self._toolkit(self._database.fresh())

    def tasks(self, split: str) -> list[Task]:
        """The official tasks of `train`, `test` or `base` (all), in the order of the task file.

        Raises:
            TaudojoError: there is no such split.
        """
        if split not in self._splits:
            raise TaudojoError(f"The domain {self.name} has no split {split!r}; choose one of {', '.join(self._splits)}.")
        wanted = self._splits[split]
        return [task for task in self._tasks if task.id in wanted]

    @cached_property
    def _tasks(self) -> tuple[Task, ...]:
        raw = json.loads(self.source.file("domains", self.name, "tasks.json").read_text(encoding="utf-8"))
        return tuple(Task(self.name, task, self.source.source, self.source.version) for task in raw)

    @cached_property
    def _splits(self) -> dict[str, frozenset[str]]:
        raw = json.loads(self.source.file("domains", self.name, "split_tasks.json").read_text(encoding="utf-8"))
        return {name: frozenset(map(str, ids)) for name, ids in raw.items()}


_loaded: dict[tuple[str, DataSource], Domain] = {}


def load_domain(name: str, source: DataSource) -> Domain:
    """The domain, loaded once per process and source.

    Raises:
        TaudojoError: an unknown name, a missing file, or a database of another form.
    """
    if (name, source) not in _loaded:
        if name not in DOMAINS:
            raise TaudojoError(f"There is no domain {name!r}; choose one of {', '.join(DOMAINS)}.")
        module_name, database_name, toolkit_name = DOMAINS[name]
        module = importlib.import_module(module_name)
        file = source.file("domains", name, "db.json")
        try:
            database = getattr(module, database_name).load(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, ValidationError) as error:
            raise TaudojoError(
                f"{file} is not a {name} database ({type(error).__name__}: {str(error).splitlines()[0]})."
            ) from error
        _loaded[name, source] = Domain(name, source, database, getattr(module, toolkit_name))
    return _loaded[name, source]
