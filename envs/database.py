"""A database that a thousand environments share: one immutable base per process, and per environment only what it changed.

A tool reads with `db.orders[order_id]` and asks for a private copy before it writes:

>>> order = db.orders.edit("#W0000001")
>>> order.status = "cancelled"

Records read without `edit` belong to everybody and must never be written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, PrivateAttr


class Record(BaseModel):
    """One row: what a tool reads, copies and writes."""

    _shared: bool = PrivateAttr(False)
    _text: str | None = PrivateAttr(None)

    def share(self) -> None:
        """Declare that nobody will write this row any more."""
        self._shared = True

    def dump(self) -> dict[str, Any]:
        """Plain Python values; whatever a tool assigned is kept as it is."""
        return self.model_dump(warnings=False)

    def text(self) -> str:
        """The row as a tool prints it. A shared row keeps the text."""
        if self._text is not None:
            return self._text
        text = json.dumps(self.dump(), default=str)
        if self._shared:
            self._text = text
        return text


R = TypeVar("R", bound=Record)


class Base(Generic[R]):
    """The immutable rows of one table, with their printed and hashed forms kept."""

    def __init__(self, rows: dict[str, R]) -> None:
        self.rows = rows
        for row in rows.values():
            row.share()
        self._canonical: dict[str, str] = {}
        self._sorted: tuple[str, ...] | None = None
        self._indexes: dict[str, dict[str, list[str]]] = {}

    def canonical(self, key: str) -> str:
        """The row as it enters the official hash."""
        text = self._canonical.get(key)
        if text is None:
            text = self._canonical[key] = canonical_json(self.rows[key].dump())
        return text

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


class Table(Mapping[str, R]):
    """A base and the rows that differ from it."""

    def __init__(self, base: Base[R]) -> None:
        self.base = base
        self._rows = base.rows
        self._edited: dict[str, R] = {}

    def __getitem__(self, key: str) -> R:
        edited = self._edited.get(key)
        return self._rows[key] if edited is None else edited

    def __contains__(self, key: object) -> bool:
        return key in self._rows or key in self._edited

    def __iter__(self) -> Iterator[str]:
        yield from self._rows
        yield from (key for key in self._edited if key not in self._rows)

    def __len__(self) -> int:
        return len(self._rows) + sum(key not in self._rows for key in self._edited)

    def edit(self, key: str) -> R:
        """The row as a copy that belongs to this environment; the same object on every call."""
        row = self._edited.get(key)
        if row is None:
            shared = self._rows[key]
            row = self._edited[key] = type(shared).model_validate(shared.dump())
        return row

    def add(self, key: str, row: R) -> None:
        """Put a row that no other environment holds; replaces a row of that key."""
        self._edited[key] = row

    def changes(self) -> dict[str, dict[str, Any]]:
        """The rows that differ from the base, by key."""
        return {key: row.dump() for key, row in self._edited.items() if self._differs(key, row)}

    def _differs(self, key: str, row: R) -> bool:
        return key not in self._rows or canonical_json(row.dump()) != self.base.canonical(key)

    def canonical(self) -> str:
        """The whole table as it enters the official hash."""
        edited = self._edited
        keys = self.base.sorted_keys()
        if any(key not in self._rows for key in edited):
            keys = tuple(sorted(self))
        text = self.base.canonical
        parts = (f"{json.dumps(k)}: {canonical_json(edited[k].dump()) if k in edited else text(k)}" for k in keys)
        return "{" + ", ".join(parts) + "}"


class Database:
    """The tables of one domain. A domain names its tables in `tables` and gives each an attribute of that name."""

    tables: ClassVar[Mapping[str, type[Record]]]

    def __init__(self, bases: Mapping[str, Base[Any]]) -> None:
        self.bases = bases
        for name, base in bases.items():
            setattr(self, name, Table(base))

    @classmethod
    def load(cls, raw: Mapping[str, Mapping[str, Any]]) -> Self:
        """The database of a τ² `db.json`.

        Raises:
            pydantic.ValidationError: the file does not have the domain's form.
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

    def changes(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What differs from the base: table, key, row. Empty while nothing differs."""
        tables = {name: getattr(self, name).changes() for name in self.bases}
        return {name: rows for name, rows in tables.items() if rows}

    def hash(self) -> str:
        """τ²-bench's hash: sha256 of the dumped database as JSON with sorted keys."""
        text = ", ".join(f"{json.dumps(name)}: {getattr(self, name).canonical()}" for name in sorted(self.bases))
        return hashlib.sha256(("{" + text + "}").encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON as τ²-bench hashes it."""
    return json.dumps(value, sort_keys=True, default=str)
