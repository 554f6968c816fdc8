"""What an agent can do in a domain: a class whose marked methods are its tools.

>>> class ShopTools(ToolKit):
...     @tool(ToolType.READ)
...     def get_price(self, item_id: str) -> float:
...         '''Price of an item.
...
...         Args:
...             item_id: The item's id.
...         '''
>>> toolkit.use(Action("get_price", {"item_id": "1"}))
ToolResult(content='4.5', error=False)

Schemas come from the signatures and docstrings. `use` never raises: an exception is what the tool answers, in the words
of τ²-bench (`Environment.get_response`), down to Python's own messages for wrong arguments.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from datetime import date
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel

from envs.database import Database, Record, canonical_json
from envs.types import Action, ToolResult

F = TypeVar("F", bound=Callable[..., Any])


class ToolType(StrEnum):
    READ = "read"
    WRITE = "write"  # changes the database; τ²'s evaluator replays only these
    GENERIC = "generic"


def tool(kind: ToolType) -> Callable[[F], F]:
    """Mark a method as a tool."""

    def mark(method: F) -> F:
        method.__tool_type__ = kind  # type: ignore[attr-defined]
        return method

    return mark


class ToolKit:
    """The tools of one environment on its database."""

    #: Tool types by name, in the order of definition.
    tools: ClassVar[Mapping[str, ToolType]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = {name: member.__tool_type__ for name, member in vars(cls).items() if hasattr(member, "__tool_type__")}
        cls.tools = {**cls.tools, **own}

    def __init__(self, db: Database) -> None:
        self.db = db

    def use(self, action: Action) -> ToolResult:
        """Call a tool; whatever goes wrong is the answer."""
        try:
            if action.name not in self.tools:
                raise ValueError(f"Tool '{action.name}' not found.")
            return ToolResult(printed(getattr(self, action.name)(**action.arguments)))
        except Exception as error:  # the agent reads it and goes on
            return ToolResult(f"Error: {error}", error=True)

    def db_hash(self) -> str:
        """τ²-bench's hash of the whole database. Milliseconds; `same_state` answers equality for less."""
        return self.db.hash()

    def changes(self) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
        """What was written: table, key, row. Empty after reads, and after writes that left everything as it was."""
        return self.db.changes()

    def same_state(self, other: ToolKit) -> bool:
        """Whether both databases are equal; agrees with comparing `db_hash`."""
        if self.db.bases is not other.db.bases:
            return self.db_hash() == other.db_hash()
        return canonical_json(self.changes()) == canonical_json(other.changes())

    @classmethod
    def schemas(cls) -> list[dict[str, Any]]:
        """The tools in OpenAI's function format, sorted by name."""
        return [_schema(name, getattr(cls, name)) for name in sorted(cls.tools)]


def printed(value: Any) -> str:
    """A tool's answer as τ² prints it: strings as they are, all else as JSON, with scalars outside records as strings."""
    if isinstance(value, str):
        return value
    return value.text() if isinstance(value, Record) else json.dumps(_plain(value), default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(warnings=False)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, date):
        return value.isoformat()
    raise ValueError(f"Unsupported type: {type(value)}")


_JSON_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


def _schema(name: str, method: Callable[..., Any]) -> dict[str, Any]:
    description, arguments = _parse_docstring(inspect.getdoc(method) or name)
    hints = typing.get_type_hints(method)
    parameters = [p for p in inspect.signature(method).parameters.values() if p.name != "self"]
    properties = {p.name: {**_json_type(hints[p.name]), "description": arguments.get(p.name, "")} for p in parameters}
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    schema = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def _json_type(hint: Any) -> dict[str, Any]:
    if typing.get_origin(hint) is list:
        return {"type": "array", "items": _json_type(typing.get_args(hint)[0])}
    if typing.get_origin(hint) is typing.Literal:
        return {"type": "string", "enum": list(typing.get_args(hint))}
    return {"type": _JSON_TYPES[hint]}


def _parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Google style: the words before `Args:`, and each argument's description."""
    description, _, rest = text.partition("\nArgs:\n")
    block = re.split(r"\n(?=\S)", rest)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", block, re.MULTILINE)
    return description.strip(), {name: " ".join(words.split()) for name, words in entries}
