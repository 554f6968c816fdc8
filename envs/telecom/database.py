"""The two shapes of telecom's databases: tables that are lists, and single objects. In memory both are tables with keys; only
the file, the official hash and a task's `initialization_data` show the difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import ConfigDict

from envs.database import Base, Database, Record, merged

#: The key of the only row of a table that stands for one object.
ONLY = "only"


class Row(Record):
    """A row whose lists and inner objects are never written in place: a tool puts a changed copy there, and copies stay small."""

    written_in_place: ClassVar[tuple[str, ...] | None] = ()
    model_config = ConfigDict(extra="forbid")


class ListDatabase(Database):
    """Every table of the file is a list of rows; new rows come last."""

    row_order_counts: ClassVar[bool] = True
    #: The field that identifies a row, by table.
    keys: ClassVar[Mapping[str, str]]

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Self:
        """The database of a parsed τ² `db.toml`.

        Raises:
            KeyError: a table is missing, or a row has no id.
            pydantic.ValidationError: a row does not have the domain's form.
        """
        return cls(
            {
                name: Base({row[cls.keys[name]]: record.model_validate(row) for row in raw[name]})
                for name, record in cls.tables.items()
            }
        )

    def update(self, data: Mapping[str, Any]) -> None:
        """Upstream loses the phone's database here, so no task can have such data.

        Raises:
            ValueError: always.
        """
        raise ValueError("initialization_data cannot change the telecom database; use initialization_actions")

    def hash(self) -> str:
        return _hash({name: f"[{', '.join(row.canonical() for row in self.table(name).rows())}]" for name in self.tables})


class ObjectDatabase(Database):
    """Every table of the file is one object; an object that is not in the file has its defaults."""

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Self:
        """The database of a parsed τ² `user_db.toml`.

        Raises:
            pydantic.ValidationError: an object does not have the domain's form.
        """
        return cls({name: Base({ONLY: record.model_validate(raw.get(name, {}))}) for name, record in cls.tables.items()})

    def update(self, data: Mapping[str, Any]) -> None:
        """Lay `data` over the objects, member by member.

        Raises:
            ValueError: an unknown object, or one that does not have the domain's form.
        """
        for name, members in data.items():
            if name not in self.tables:
                raise ValueError(f"initialization_data.{name} is not known; there are {', '.join(self.tables)}")
            table = self.table(name)
            table.add(ONLY, self.tables[name].model_validate(merged(table[ONLY].dump(), members)))

    def hash(self) -> str:
        return _hash({name: self.table(name)[ONLY].canonical() for name in self.tables})


def _hash(tables: Mapping[str, str]) -> str:
    text = ", ".join(f"{json.dumps(name)}: {tables[name]}" for name in sorted(tables))
    return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()
