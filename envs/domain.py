"""A domain: its policy, its tools, its tasks, and the database that all its environments share.

>>> retail = load_domain("retail", open_source("packaged"))
>>> env = Env(retail, retail.tasks("train")[0], ScriptedUser())

A domain is a module with one function, `load(source) -> DomainParts`. It has a line in `DOMAINS`, or is loaded by its dotted name
(`load_domain("shop.library", …)`):

    def load(source: DataSource) -> DomainParts:
        database = read_database(source, "library", LibraryDatabase)
        return DomainParts(database, LibraryTools, policy=read_text(source, "library", "policy.md"))
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any, TypeVar, cast

from envs import compact as general_form
from envs.data import DataSource
from envs.database import Database
from envs.errors import TaudojoError
from envs.expert import GoldAgent
from envs.protocols import CompactForm, Example, Expert, Sampler
from envs.toolkit import ToolKit, function_schema
from envs.types import DONE, STOP_TOKEN, Task

#: The module of each domain.
DOMAINS: Mapping[str, str] = {
    "mock": "envs.mock",
    "retail": "envs.retail",
    "airline": "envs.airline",
    "telecom": "envs.telecom",
}

#: Initial states that are kept ready; more than any task file has.
_KEPT_STATES = 4096

D = TypeVar("D", bound=Database)


@dataclass(frozen=True)
class DomainParts:
    """What a domain is made of: the user's parts where the customer has tools, `solo_policy` where an agent may work alone."""

    database: Database
    toolkit: type[ToolKit]
    policy: str
    user_database: Database | None = None
    user_toolkit: type[ToolKit] | None = None
    solo_policy: str | None = None


class Domain:
    """One domain from one data source. Made by `load_domain`, which keeps it for the life of the process."""

    def __init__(self, name: str, source: DataSource, parts: DomainParts, module: str) -> None:
        self.name = name
        self.source = source
        self._parts = parts
        self._module = module
        self._initial: dict[tuple[int, bool], tuple[Mapping[str, Any], ToolKit]] = {}

    @property
    def policy(self) -> str:
        """The official policy that the agent must follow."""
        return self._parts.policy

    @property
    def solo_policy(self) -> str | None:
        """The policy of an agent that works alone; None where the domain has no such mode."""
        return self._parts.solo_policy

    @property
    def database(self) -> Database:
        """The database as it is before any episode. For reading."""
        return self._parts.database

    @property
    def user_database(self) -> Database | None:
        """The same of the customer's own; None where they have no tools."""
        return self._parts.user_database

    @cached_property
    def write_tools(self) -> frozenset[str]:
        """The agent's tools that change a database."""
        return self._parts.toolkit.mutating

    @cached_property
    def user_write_tools(self) -> frozenset[str]:
        """The customer's tools that change a database."""
        return self._parts.user_toolkit.mutating if self._parts.user_toolkit else frozenset()

    @cached_property
    def tool_schemas(self) -> list[dict[str, Any]]:
        """The agent's tools in OpenAI's function format."""
        return self._parts.toolkit.schemas()

    @cached_property
    def user_tool_schemas(self) -> list[dict[str, Any]]:
        """The customer's tools; empty where they have none."""
        return self._parts.user_toolkit.schemas() if self._parts.user_toolkit else []

    @cached_property
    def solo_tool_schemas(self) -> list[dict[str, Any]]:
        """All tools of an agent that works alone: its own, the customer's, and `done`."""
        return [*self.tool_schemas, *self.user_tool_schemas, function_schema(DONE, _done)]

    def expert(self, task: Task, *, solo: bool = False) -> Expert:
        """Who plays `task` as fine-tuning should teach it; `solo` without a customer."""
        own = None if solo else _submodule(self._module, "expert")
        return GoldAgent(self, task, solo=solo) if own is None else cast(Expert, own.GoldAgent(self, task))

    @property
    def compact(self) -> CompactForm:
        """The domain for models with little context: its own short form, or the general one with the whole policy."""
        return cast(CompactForm, _submodule(self._module, "compact") or general_form)

    @property
    def sampler(self) -> Sampler | None:
        """Who makes new tasks; None where there are only those of the file."""
        return cast("Sampler | None", _submodule(self._module, "sampler"))

    @property
    def examples(self) -> tuple[Example, ...]:
        """Calls that a prompt may show; none where the domain has written none."""
        own = _submodule(self._module, "examples")
        return tuple(own.EXAMPLES) if own else ()

    def new_toolkit(self, task: Task | None = None, *, solo: bool = False) -> ToolKit:
        """The tools on an unchanged database, or on the one that `task` begins with; microseconds after the first time.

        Raises:
            TaudojoError: the task's initial state does not fit the domain, or the domain has no solo mode.
        """
        state = task.initial_state if task else None
        if not state or task is None:
            return self._unchanged(solo)
        known = self._initial.get((id(state), solo))
        if known is None:
            if len(self._initial) >= _KEPT_STATES:
                self._initial.clear()
            known = self._initial[id(state), solo] = (state, self._initialised(task, state, solo))
        return known[1].fork()

    def require_mode(self, *, solo: bool) -> None:
        """Raise TaudojoError if an agent is to work alone and the domain has no such mode."""
        if solo and self.solo_policy is None:
            raise TaudojoError(f"The domain {self.name} has no solo mode; give the environment a user.")

    def _unchanged(self, solo: bool) -> ToolKit:
        self.require_mode(solo=solo)
        parts = self._parts
        user = None
        if parts.user_toolkit is not None and parts.user_database is not None:
            user = parts.user_toolkit(parts.user_database.fresh())
        toolkit = parts.toolkit(parts.database.fresh(), user, solo=solo)
        toolkit.sync()
        return toolkit

    def _initialised(self, task: Task, state: Mapping[str, Any], solo: bool) -> ToolKit:
        toolkit = self._unchanged(solo)
        try:
            toolkit.initialise(state)
        except Exception as error:  # tasks name functions and arguments freely; whatever these raise, the task is at fault
            raise TaudojoError(
                f"The initial state of task {task.id} does not fit the domain {self.name} ({type(error).__name__}: {error})."
            ) from error
        return toolkit

    def tasks(self, split: str) -> list[Task]:
        """The official tasks of `base` (all that are used), or of another split of the file, in the order of the task file.

        Raises:
            TaudojoError: there is no such split.
        """
        if split not in self._splits:
            raise TaudojoError(f"The domain {self.name} has no split {split!r}; choose one of {', '.join(self._splits)}.")
        wanted = self._splits[split]
        return [task for task in self._tasks if task.id in wanted]

    @property
    def splits(self) -> tuple[str, ...]:
        """The names that `tasks` takes."""
        return tuple(self._splits)

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """Every task of the file; telecom has twenty times as many as its splits use."""
        return self._tasks

    @cached_property
    def _tasks(self) -> tuple[Task, ...]:
        raw = json.loads(read_text(self.source, self.name, "tasks.json"))
        return tuple(Task(self.name, task, self.source.source, self.source.version) for task in raw)

    @cached_property
    def _splits(self) -> dict[str, frozenset[str]]:
        raw = json.loads(read_text(self.source, self.name, "split_tasks.json"))
        return {name: frozenset(map(str, ids)) for name, ids in raw.items()}


_loaded: dict[tuple[str, DataSource], Domain] = {}


def load_domain(name: str, source: DataSource) -> Domain:
    """The domain, loaded once per process and source.

    Args:
        name: One of `DOMAINS`, or the dotted name of a module of your own; the files of `shop.library` are in `domains/library`.

    Raises:
        TaudojoError: an unknown name, a missing file, or a database of another form.
    """
    if (name, source) not in _loaded:
        if name not in DOMAINS and not ("." in name and all(part.isidentifier() for part in name.split("."))):
            raise TaudojoError(
                f"There is no domain {name!r}; choose one of {', '.join(DOMAINS)}, or the dotted name of a module of your own."
            )
        module = DOMAINS.get(name, name)
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise TaudojoError(f"The domain {name} cannot be imported ({error}); put its folder into PYTHONPATH.") from error
        _loaded[name, source] = Domain(name.rpartition(".")[2], source, loaded.load(source), module)
    return _loaded[name, source]


@cache
def _submodule(package: str, name: str) -> ModuleType | None:
    """A module of a package, if there is one."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None or importlib.util.find_spec(f"{package}.{name}") is None:
        return None
    return importlib.import_module(f"{package}.{name}")


def read_text(source: DataSource, domain: str, file: str) -> str:
    """A file of the domain's folder.

    Raises:
        TaudojoError: it is not there.
    """
    return source.file("domains", domain, file).read_text(encoding="utf-8")


def read_database(source: DataSource, domain: str, database: type[D], file: str = "db.json") -> D:
    """The database in a JSON or TOML file of the domain's folder.

    Raises:
        TaudojoError: the file is not there, or has another form.
    """
    text = read_text(source, domain, file)
    try:
        return database.load(tomllib.loads(text) if file.endswith(".toml") else json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        path, reason = source.file("domains", domain, file), str(error).partition("\n")[0]
        raise TaudojoError(f"{path} is not a {domain} database ({type(error).__name__}: {reason}).") from error


def _done() -> str:
    """Call this when you are done with the task."""
    return STOP_TOKEN
