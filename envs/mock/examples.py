"""Calls for `env.examples`. The values are invented: they stand in no task and in no database."""

from __future__ import annotations

from envs.protocols import Example
from envs.types import Action

EXAMPLES: tuple[Example, ...] = (
    (
        "I am user_417. Please note that I want to water the ferns.",
        Action("create_task", {"user_id": "user_417", "title": "Water the ferns"}),
    ),
    ("I have done task_417.", Action("update_task_status", {"task_id": "task_417", "status": "completed"})),
)
