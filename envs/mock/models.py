"""The rows of the mock domain's two databases, field for field as τ²-bench defines them: tools print the fields in this order.

The databases have upstream's names, which Python puts into error messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict

from envs.database import Database, Record, Table

TaskStatus = Literal["pending", "completed"]


class Task(Record):
    task_id: str
    title: str
    description: str | None = None
    status: TaskStatus


class User(Record):
    user_id: str
    name: str
    tasks: list[str]


class MockDB(Database):
    tables: ClassVar[Mapping[str, type[Record]]] = {"tasks": Task, "users": User}

    tasks: Table[Task]
    users: Table[User]


class Notification(Record):
    model_config = ConfigDict(extra="forbid")

    notification_id: str
    message: str
    status: Literal["unread", "read"] = "unread"
    task_id: str | None = None


class MockUserDB(Database):
    """The customer's inbox; one that is not in the file is empty."""

    tables: ClassVar[Mapping[str, type[Record]]] = {"notifications": Notification}

    notifications: Table[Notification]

    @classmethod
    def load(cls, raw: Mapping[str, Mapping[str, Any]]) -> Self:
        return super().load({"notifications": {}, **raw})
