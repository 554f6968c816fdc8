"""A database that a thousand environments share: one immutable base per process, and per environment only what it changed.

A tool reads with `db.orders[order_id]` and asks for a private copy before it writes:

>>> order = db.orders.edit("#W0000001")
>>> order.status = "cancelled"

Records read without `edit` belong to everybody and must never be written. That holds for an environment's own changes too once
it was forked or compared: the next `edit` copies again, so that forks, snapshots and undo cost what was changed and no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, PrivateAttr

_PLAIN = frozenset({str, int, float, bool, type(None)})


class Record(BaseModel):
    """One row: what a tool reads, copies and writes."""

    #: The members that tools change in place, to copy no more than these; None is all. A member may always be replaced.
    written_in_place: ClassVar[tuple[str, ...] | None] = None

    _shared: bool = PrivateAttr(False)
    _text: str | None = PrivateAttr(None)
    _canonical: str | None = PrivateAttr(None)

    @property
    def _kept(self) -> dict[str, Any]:
        """The private attributes where pydantic has them: ten times as fast to read as by their names."""
        return self.__pydantic_private__  # type: ignore[return-value]

    def share(self) -> None:
        """Declare that nobody will write this row any more."""
        self._kept["_shared"] = True

    @property
    def shared(self) -> bool:
        shared: bool = self._kept["_shared"]
        return shared

    def private_copy(self) -> Self:
        """A copy that may be written, as far as `written_in_place` says."""
        new = self.shallow_copy()
        members = new.__dict__
        names = self.written_in_place
        for name in tuple(members) if names is None else names:
            members[name] = copied(members[name])
        return new

    def shallow_copy(self) -> Self:
        """A copy with the same members."""
        new = self.__copy__()
        new._kept.update(_UNKEPT)
        return new

    def dump(self) -> dict[str, Any]:
        """Plain Python values; whatever a tool assigned is kept as it is."""
        return self.model_dump(warnings=False)

    def text(self) -> str:
        """The row as a tool prints it. A shared row keeps the text."""
        return self._made("_text", printed_json)

    def canonical(self) -> str:
        """The row as it enters the official hash. A shared row keeps the text."""
        return self._made("_canonical", canonical_json)

    def same_as(self, other: Record) -> bool:
        """Whether both enter the official hash as the same text."""
        return alike(self, other) or self.canonical() == other.canonical()

    def _made(self, name: str, make: Callable[[dict[str, Any]], str]) -> str:
        kept = self._kept
        text: str | None = kept[name]
        if text is None:
            text = make(self.dump())
            if kept["_shared"]:
                kept[name] = text
        return text


#: The private attributes of a row that is not shared.
_UNKEPT = {"_shared": False, "_text": None, "_canonical": None}

R = TypeVar("R", bound=Record)


def copied(value: Any) -> Any:
    """A deep copy of models, lists and dictionaries. Values are not validated again: what a tool assigned stays."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, BaseModel):
        new = value.__copy__()
        members = new.__dict__
        for name, member in members.items():
            if type(member) not in _PLAIN:
                members[name] = copied(member)
        return new
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return value


def alike(one: Any, other: Any) -> bool:
    """Whether two values agree in every type and every value, members in the same order: then they print and hash alike.

    False says nothing: 1 and 1.0 may hash apart or, as a model's member, alike; that is for the serializer to say.
    """
    kind = type(one)
    if one is other:
        return True
    if kind is not type(other):
        return False
    if kind is str or kind is int:
        return bool(one == other)
    if kind is float:
        return repr(one) == repr(other)  # 0.0 and -0.0 print apart, two NaN alike
    if kind is list:
        return len(one) == len(other) and all(map(alike, one, other))
    if kind is dict:
        return len(one) == len(other) and all(map(alike, one, other)) and all(map(alike, one.values(), other.values()))
    if isinstance(one, BaseModel):
        return alike(one.__dict__, other.__dict__) and alike(one.__pydantic_extra__, other.__pydantic_extra__)
    return False


class Base(Generic[R]):
    """The immutable rows of one table."""

    def __init__(self, rows: dict[str, R]) -> None:
        self.rows = rows
        #: What a domain has worked out from these rows, once for all environments. The domain sees to it that it holds for them.
        self.derived: dict[Any, Any] = {}
        for row in rows.values():
            row.share()
        self._sorted: tuple[str, ...] | None = None
        self._whole: str | None = None
        self._indexes: dict[str, dict[str, list[str]]] = {}

    def canonical(self, key: str) -> str:
        """The row as it enters the official hash."""
        return self.rows[key].canonical()

    def index(self, name: str, field: Callable[[R], str]) -> Mapping[str, list[str]]:
        """Keys by the value of `field`, in the table's order. For values that no tool changes."""
        found = self._indexes.get(name)
        if found is None:
            found = self._indexes[name] = {}
            for key, row in self.rows.items():
                found.setdefault(field(row), []).append(key)
        return found

    def sorted_keys(self) -> tuple[str, ...]:
        if self._sorted is None:
            self._sorted = tuple(sorted(self.rows))
        return self._sorted

    def whole(self) -> str:
        """The table as it enters the official hash while nothing is changed."""
        if self._whole is None:
            self._whole = _object((key, self.canonical(key)) for key in self.sorted_keys())
        return self._whole


class Table(Mapping[str, R]):
    """A base and the rows that differ from it."""

    __slots__ = ("_edited", "_rows", "base")

    def __init__(self, base: Base[R], edited: dict[str, R | None] | None = None) -> None:
        self.base = base
        self._rows = base.rows
        self._edited: dict[str, R | None] = {} if edited is None else edited  # None: removed

    def __getitem__(self, key: str) -> R:
        edited = self._edited
        if edited and key in edited:
            row = edited[key]
            if row is None:
                raise KeyError(key)
            return row
        return self._rows[key]

    def __contains__(self, key: object) -> bool:
        edited: Mapping[Any, R | None] = self._edited
        return edited[key] is not None if key in edited else key in self._rows

    def __iter__(self) -> Iterator[str]:
        if not self._edited:
            return iter(self._rows)
        kept = [key for key in self._rows if key in self]
        return iter(kept + [key for key in self._edited if key not in self._rows])

    def __len__(self) -> int:
        return len(self._rows) + sum((row is not None) - (key in self._rows) for key, row in self._edited.items())

    def rows(self) -> list[R]:
        """All rows in the table's order; the quick form of `values()`."""
        return [self[key] for key in self] if self._edited else list(self._rows.values())

    def where(self, index: str, field: Callable[[R], str], value: Any) -> list[R]:
        """The rows whose `field` equals `value`, in the table's order. `index` names the field among this table's fields."""
        edited, rows = self._edited, self._rows
        keys = self.base.index(index, field).get(value, ()) if isinstance(value, str) else None
        if keys is None or any(row is not None and field(row) == value and key not in keys for key, row in edited.items()):
            return [row for row in self.rows() if field(row) == value]
        if not edited:
            return [rows[key] for key in keys]
        found = [edited[key] if key in edited else rows[key] for key in keys]
        return [row for row in found if row is not None and field(row) == value]

    def edit(self, key: str) -> R:
        """The row as a copy that belongs to this environment; within one call of a tool the same object every time."""
        row = self[key]
        if row.shared:
            row = self._edited[key] = row.private_copy()
        return row

    def add(self, key: str, row: R) -> None:
        """Put a row that no other environment holds; replaces a row of that key."""
        self._edited[key] = row

    def remove(self, key: str) -> None:
        """Take a row away.

        Raises:
            KeyError: there is no such row.
        """
        if key not in self:
            raise KeyError(key)
        if key in self._rows:
            self._edited[key] = None
        else:
            del self._edited[key]

    def fork(self) -> Table[R]:
        """A table in the same state that goes its own way from here."""
        self.seal()
        return Table(self.base, dict(self._edited))

    def seal(self) -> None:
        """Let nobody write the changed rows any more: whoever writes next gets a copy."""
        for row in self._edited.values():
            if row is not None:
                row.share()

    def changes(self) -> dict[str, dict[str, Any] | None]:
        """The rows that differ from the base, by key; None for a row that was removed."""
        differing = {key: row for key, row in self._edited.items() if self._differs(key, row)}
        return {key: None if row is None else row.dump() for key, row in differing.items()}

    def _differs(self, key: str, row: R | None) -> bool:
        return row is None or key not in self._rows or row.canonical() != self.base.canonical(key)

    def same_as(self, other: Table[R]) -> bool:
        """Whether both tables of one base hold the same rows."""
        for key in self._edited.keys() | other._edited.keys():
            row, others = self.get(key), other.get(key)
            if row is not others and (row is None or others is None or not row.same_as(others)):
                return False
        return True

    def new_keys(self) -> list[str]:
        """Keys of rows that the base does not have, oldest first."""
        return [key for key in self._edited if key not in self._rows]

    def canonical(self) -> str:
        """The whole table as it enters the official hash."""
        if not self._edited:
            return self.base.whole()
        return _object((key, self[key].canonical()) for key in sorted(self))


class Database:
    """The tables of one domain. A domain names its tables in `tables` and gives each an attribute of that name."""

    tables: ClassVar[Mapping[str, type[Record]]]
    #: Whether two databases differ when their new rows came in another order (tables that τ² keeps as lists).
    row_order_counts: ClassVar[bool] = False

    def __init__(self, bases: Mapping[str, Base[Any]]) -> None:
        self.bases = bases
        for name, base in bases.items():
            setattr(self, name, Table(base))

    @classmethod
    def load(cls, raw: Mapping[str, Mapping[str, Any]]) -> Self:
        """The database of a τ² `db.json`.

        Raises:
            KeyError: a table is missing.
            pydantic.ValidationError: a row does not have the domain's form.
        """
        return cls(
            {
                name: Base({key: record.model_validate(row) for key, row in raw[name].items()})
                for name, record in cls.tables.items()
            }
        )

    def fresh(self) -> Self:
        """The same base without changes: what a new episode starts from."""
        return type(self)(self.bases)

    def fork(self) -> Self:
        """A database in the same state that goes its own way from here; costs what was changed."""
        new = object.__new__(type(self))  # copy.copy makes the same, slowly
        members = new.__dict__
        members.update(self.__dict__)
        for name in self.bases:
            members[name] = members[name].fork()
        return new

    def table(self, name: str) -> Table[Any]:
        found: Table[Any] = getattr(self, name)
        return found

    def update(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """Lay a task's `initialization_data` over the rows as τ² does: objects are merged, everything else is replaced.

        Raises:
            ValueError: an unknown table, or a row that does not have the domain's form.
        """
        for name, rows in data.items():
            if name not in self.tables or not isinstance(rows, Mapping):
                raise ValueError(f"initialization_data.{name} is no table of rows; the tables are {', '.join(self.tables)}")
            table = self.table(name)
            for key, row in rows.items():
                whole = merged(table[key].dump(), row) if key in table else row
                table.add(key, self.tables[name].model_validate(whole))

    def changes(self) -> dict[str, dict[str, dict[str, Any] | None]]:
        """What differs from the base: table, key, row. Empty while nothing differs."""
        tables = {name: self.table(name).changes() for name in self.bases}
        return {name: rows for name, rows in tables.items() if rows}

    def same_as(self, other: Database) -> bool:
        """Whether the contents are equal; agrees with comparing `hash`, for the price of what was changed."""
        if self is other:
            return True
        if self.bases is not other.bases:
            return self.hash() == other.hash()
        for name in self.bases:
            table, others = self.table(name), other.table(name)
            table.seal()
            others.seal()
            if not table.same_as(others) or (self.row_order_counts and table.new_keys() != others.new_keys()):
                return False
        return True

    def hash(self) -> str:
        """τ²-bench's hash: sha256 of the dumped database as JSON with sorted keys."""
        text = _object((name, self.table(name).canonical()) for name in sorted(self.bases))
        return hashlib.sha256(text.encode()).hexdigest()


def merged(old: Any, new: Any) -> Any:
    """`new` over `old`; where both are objects, member by member."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{key: merged(old[key], value) if key in old else value for key, value in new.items()}}


#: JSON as τ²-bench prints it.
printed_json = json.JSONEncoder(default=str).encode

#: JSON as τ²-bench hashes it.
canonical_json = json.JSONEncoder(sort_keys=True, default=str).encode


def _object(members: Iterable[tuple[str, str]]) -> str:
    """A JSON object of members that are JSON already."""
    return "{" + ", ".join(f"{json.dumps(key)}: {text}" for key, text in members) + "}"
