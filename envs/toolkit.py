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

Where the customer acts too (telecom), the agent's toolkit carries theirs in `user`, and calls go where their requestor says.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from enum import Enum, StrEnum
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel

from envs.database import Database, Record
from envs.types import Action, Requestor, ToolResult, read_history

F = TypeVar("F", bound=Callable[..., Any])

#: Names of τ²'s own parameters: a call whose arguments contain one of them fails before it reaches the tool.
_TAKEN = frozenset({"self", "tool_name", "requestor"})

#: Levels of lists and objects in an argument. τ² sets no limit, but Python's recursion does: some way on, a row could be written
#: and printed, and not be hashed any more.
_DEEPEST = 100


class ToolType(StrEnum):
    READ = "read"
    WRITE = "write"  # changes the database; τ²'s evaluator replays only these
    THINK = "think"
    GENERIC = "generic"


def tool(kind: ToolType, mutates: bool | None = None) -> Callable[[F], F]:
    """Mark a method as a tool. `mutates` is for the rare one whose kind does not say whether it changes a database."""

    def mark(method: F) -> F:
        method.__tool_type__ = kind  # type: ignore[attr-defined]
        method.__mutates__ = kind is ToolType.WRITE if mutates is None else mutates  # type: ignore[attr-defined]
        return method

    return mark


def helper(method: F) -> F:
    """Mark a method that tasks call to prepare an episode or to check its end. It is offered to nobody as a tool."""
    method.__task_helper__ = True  # type: ignore[attr-defined]
    return method


@dataclass(frozen=True)
class Snapshot:
    """A state to go back to, any number of times. Costs what was changed."""

    db: Database
    user_db: Database | None


class ToolKit:
    """The tools of one environment on its database.

    Args:
        db: What the tools work on.
        user: The customer's own tools, where they have any.
        solo: The agent uses the customer's tools too, and there is no customer.
    """

    #: Tool types by name, in the order of definition.
    tools: ClassVar[Mapping[str, ToolType]] = {}
    #: The tools that change a database.
    mutating: ClassVar[frozenset[str]] = frozenset()
    #: Methods that tasks may call besides the tools.
    helpers: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        members = {name: member for base in reversed(cls.__mro__) for name, member in vars(base).items()}
        cls.tools = {name: kind for name, m in members.items() if (kind := getattr(m, "__tool_type__", None)) is not None}
        cls.mutating = frozenset(name for name in cls.tools if members[name].__mutates__)
        cls.helpers = frozenset(name for name, m in members.items() if getattr(m, "__task_helper__", False))

    def __init__(self, db: Database, user: ToolKit | None = None, *, solo: bool = False) -> None:
        self.db = db
        self.user = user
        self.solo = solo
        self._before_write: Snapshot | None = None
        self._unsynced = True  # something may have changed since `sync` was last done

    def use(self, action: Action, *, undoable: bool = True) -> ToolResult:
        """Call a tool; whatever goes wrong is the answer. A call that fails half-way leaves what it had written, as in τ².

        A call that is not `undoable` costs less; should its answer not be printable, then the toolkit is spoiled.
        """
        writes = False
        try:
            if writes := self.mutates(action.name):
                _refuse_deep(action.arguments)
                self._before_write = self.snapshot() if undoable else None
            value = self.run(action)
            self._sync_if_changed()
        except Exception as error:  # the caller reads it and goes on
            return ToolResult(f"Error: {error}", error=True)
        try:
            return ToolResult(printed(value))
        except Exception as error:  # τ² breaks off here: what cannot be printed could not be hashed either
            if writes and undoable:
                self.undo()
            return ToolResult(f"Error: {error}", error=True)

    def run(self, action: Action) -> Any:
        """Call a tool and return its value; neither `sync` nor any catching of exceptions.

        Raises:
            Exception: what the tool raises; ValueError for an unknown one. The words are those of `Environment.make_tool_call`.
        """
        arguments = action.arguments
        if not _TAKEN.isdisjoint(arguments):
            raise TypeError(_taken_twice(arguments))
        toolkit = self._toolkit_for(action)
        if action.name not in toolkit.tools:
            raise ValueError(f"Tool '{action.name}' not found.")
        if action.name in toolkit.mutating:
            self._unsynced = True
        return getattr(toolkit, action.name)(**arguments)

    def _toolkit_for(self, action: Action) -> ToolKit:
        if action.requestor == "user":
            if self.solo:
                raise ValueError("User tool calls are not allowed in solo mode")
            if self.user is None:
                raise ValueError("User tools not available")
            return self.user
        if action.requestor != "assistant":
            raise ValueError(f"Invalid requestor: {action.requestor}")
        return self.user if self.solo and self.user is not None and action.name in self.user.tools else self

    def sync(self) -> None:
        """Carry over between `self.db` and `self.user.db` what each side's world implies for the other's.

        Done after every call, except after one that only reads when nothing is left to carry over: twice must be as good as once.
        """

    def _sync_if_changed(self) -> None:
        if self._unsynced:
            self.sync()
            self._unsynced = False

    def mutates(self, name: str) -> bool:
        """Whether the tool changes a database. The agent's tools come first; an unknown tool changes nothing."""
        if name in self.tools or self.user is None:
            return name in self.mutating
        return name in self.user.mutating

    def replay(self, action: Action, expected: str) -> None:
        """Do again what a recorded conversation did. What changes nothing is left out, as in τ²'s `Environment.set_state`.

        Raises:
            ValueError: the answer is not the recorded one.
        """
        if not self.mutates(action.name):
            return
        # What cannot be printed answers with an error, so any other answer needs no undo.
        content = self.use(action, undoable=expected.startswith("Error: ")).content
        same = content == expected and "NaN" not in content  # which is not equal to itself
        if not same and _parsed(content) != _parsed(expected):
            raise ValueError(f"Replayed {action.name}({dict(action.arguments)}) answers {content!r}, recorded was {expected!r}")

    def call(self, name: str, arguments: Mapping[str, Any], requestor: Requestor = "assistant") -> Any:
        """Call a method that tasks may name: a tool, or one marked `@helper`.

        Raises:
            ValueError: there is no such method, or the domain has no user tools.
            Exception: what the method raises.
        """
        toolkit = self if requestor == "assistant" else self.user
        if toolkit is None:
            raise ValueError(f"{name}: {type(self).__name__} has no user tools")
        if name not in toolkit.tools and name not in toolkit.helpers:
            raise ValueError(f"{type(toolkit).__name__} has no function {name!r} that a task may call")
        self._unsynced = True
        return getattr(toolkit, name)(**arguments)

    def initialise(self, initial_state: Mapping[str, Any]) -> None:
        """Bring about a task's `initial_state`, in the order of τ²'s `Environment.set_state`.

        Raises:
            Exception: the state does not fit the domain (ValueError mostly, or what a called method raises).
        """
        self._unsynced = True
        data = initial_state.get("initialization_data") or {}
        if data.get("agent_data") is not None:
            self.db.update(data["agent_data"])
            if self.user is not None:
                self.user.db = self.db  # upstream's own doing: from here on the user tools see the agent's database
        if data.get("user_data") is not None:
            if self.user is None:
                raise ValueError("initialization_data.user_data: the domain has no user database")
            self.user.db.update(data["user_data"])
            self.db = self.user.db  # likewise
        for function in initial_state.get("initialization_actions") or ():
            self._call_function(function)
        for message in read_history(initial_state.get("message_history")):
            if message.role == "tool" and message.action is not None:
                self.replay(message.action, message.content or "")
        self._sync_if_changed()
        self._before_write = None

    def check(self, assertion: Mapping[str, Any]) -> bool:
        """Whether a task's `env_assertion` holds.

        Raises:
            Exception: what the assertion itself raises, as in τ²; ValueError where it does not answer yes or no.
        """
        answer = self._call_function(assertion)
        if not isinstance(answer, bool):
            raise ValueError(f"Function {assertion['func_name']} returned {type(answer)} instead of bool")
        return answer == assertion.get("assert_value", True)

    def _call_function(self, function: Mapping[str, Any]) -> Any:
        answer = self.call(function["func_name"], function.get("arguments") or {}, function["env_type"])
        self._sync_if_changed()
        return answer

    def snapshot(self) -> Snapshot:
        """The state as it is now."""
        db = self.db.fork()
        if self.user is None:
            return Snapshot(db, None)
        return Snapshot(db, db if self.user.db is self.db else self.user.db.fork())

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this toolkit or of one it was forked from."""
        self.db = snapshot.db.fork()
        if self.user is not None and snapshot.user_db is not None:
            self.user.db = self.db if snapshot.user_db is snapshot.db else snapshot.user_db.fork()
        self._before_write = None
        self._unsynced = True

    def fork(self) -> Self:
        """Another toolkit in the same state; neither sees what the other does from here."""
        new = self._twin(self.db.fork())
        if self.user is not None:
            new.user = self.user._twin(new.db if self.user.db is self.db else self.user.db.fork())
        return new

    def _twin(self, db: Database) -> Self:
        """The same toolkit on another database."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.db = db
        return new

    def undo(self) -> None:
        """Take back the last call that could write, and what came after it. Once: older states need a snapshot.

        Raises:
            ValueError: nothing was written since the start, the last undo or the last `restore`.
        """
        if self._before_write is None:
            raise ValueError("There is no write to undo; take a snapshot to go back further.")
        self.restore(self._before_write)

    def db_hash(self) -> str:
        """τ²-bench's hash of the agent's whole database. Milliseconds; `same_state` answers equality for less."""
        return self.db.hash()

    def user_db_hash(self) -> str | None:
        """The same of the customer's database; None where they have no tools."""
        return None if self.user is None else self.user.db.hash()

    def changes(self) -> Mapping[str, Mapping[str, Mapping[str, Any] | None]]:
        """What was written: table, key, row; the customer's tables as `user.<table>`. Empty while all is as it was."""
        changes = self.db.changes()
        if self.user is None or self.user.db is self.db:
            return changes
        return {**changes, **{f"user.{name}": rows for name, rows in self.user.db.changes().items()}}

    def same_state(self, other: ToolKit) -> bool:
        """Whether the databases are equal; agrees with comparing `db_hash` and `user_db_hash`."""
        if (self.user is None) is not (other.user is None) or not self.db.same_as(other.db):
            return False
        return self.user is None or other.user is None or self.user.db.same_as(other.user.db)

    @classmethod
    def schemas(cls) -> list[dict[str, Any]]:
        """The tools in OpenAI's function format, sorted by name."""
        return [function_schema(name, getattr(cls, name)) for name in sorted(cls.tools)]


def _taken_twice(arguments: Mapping[str, Any]) -> str:
    """What Python says in τ²'s `Environment.get_response` to a call that names one of `_TAKEN`."""
    method = "Environment.make_tool_call() got multiple values for"
    if "requestor" in arguments:
        return f"tau2.environment.environment.{method} keyword argument 'requestor'"
    return f"{method} argument '{next(name for name in arguments if name in _TAKEN)}'"


def _refuse_deep(arguments: Mapping[str, Any]) -> None:
    level: list[Any] = [value for value in arguments.values() if isinstance(value, list | tuple | dict)]
    for _ in range(_DEEPEST):
        if not level:
            return
        inner = (item for value in level for item in (value.values() if isinstance(value, dict) else value))
        level = [item for item in inner if isinstance(item, list | tuple | dict)]
    raise ValueError(f"The arguments are nested more than {_DEEPEST} levels deep")


def _parsed(content: str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content


def printed(value: Any) -> str:
    """A tool's answer as τ² prints it: strings as they are, all else as JSON, with scalars outside records as strings."""
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    if isinstance(value, Record):
        return value.text()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join([_json(item) for item in value])}]"
    return json.dumps(_plain(value), default=str)


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


_JSON_TYPES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
    list: "array",
    type(None): "null",
}


def function_schema(name: str, method: Callable[..., Any]) -> dict[str, Any]:
    """A function in OpenAI's format, from its signature and docstring."""
    description, arguments = _parse_docstring(inspect.getdoc(method) or name)
    hints = typing.get_type_hints(method)
    parameters = [p for p in inspect.signature(method).parameters.values() if p.name != "self"]
    properties = {p.name: {**_json_type(hints[p.name]), "description": arguments.get(p.name, "")} for p in parameters}
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    schema = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def _json_type(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_json_type(option) for option in arguments]}
    if origin is list:
        return {"type": "array", "items": _json_type(arguments[0])}
    if origin is typing.Literal:
        return {"type": "string", "enum": list(arguments)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"type": "string", "enum": [member.value for member in hint]}
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return _object_type(hint)
    return {"type": _JSON_TYPES[origin or hint]}


def _object_type(model: type[BaseModel]) -> dict[str, Any]:
    """The members with their descriptions, written out in place: some models' chat templates cannot follow references."""
    properties = {}
    for name, field in model.model_fields.items():
        description = {"description": field.description} if field.description else {}
        properties[name] = {**_json_type(field.annotation), **description}
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    return {"type": "object", "properties": properties, "required": required}


def _parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Google style: the words before `Args:`, and each argument's description."""
    description, _, rest = text.partition("\nArgs:\n")
    block = re.split(r"\n(?=\S)", rest)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", block, re.MULTILINE)
    return description.strip(), {name: " ".join(words.split()) for name, words in entries}
