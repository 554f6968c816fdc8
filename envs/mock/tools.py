"""The mock agent's tools. They answer what τ²-bench v1.0.1 answers (`domains/mock/tools.py`)."""

from __future__ import annotations

from envs.mock.models import MockDB, Task, TaskStatus, User
from envs.toolkit import ToolKit, ToolType, helper, tool


class MockTools(ToolKit):
    """Statuses are not checked: a task may get any, as in upstream."""

    db: MockDB

    @tool(ToolType.WRITE)
    def create_task(self, user_id: str, title: str, description: str | None = None) -> Task:
        """Add a task to a user's list.

        Args:
            user_id: The id of the user whose task it is, such as 'user_1'.
            title: The task's title.
            description: More words about the task, if there are any.
        """
        if user_id not in self.db.users:
            raise ValueError(f"User {user_id} not found")
        task_id = f"task_{len(self.db.tasks) + 1}"
        task = Task(task_id=task_id, title=title, description=description, status="pending")
        self.db.tasks.add(task_id, task)
        self.db.users.edit(user_id).tasks.append(task_id)
        return task

    @tool(ToolType.READ)
    def get_users(self) -> list[User]:
        """All users, with their names and the ids of their tasks."""
        return self.db.users.rows()

    @tool(ToolType.WRITE)
    def update_task_status(self, task_id: str, status: TaskStatus) -> Task:
        """Set the status of a task.

        Args:
            task_id: The task's id, such as 'task_1'.
            status: The new status.
        """
        if task_id not in self.db.tasks:
            raise ValueError(f"Task {task_id} not found")
        task = self.db.tasks.edit(task_id)
        task.status = status
        return task

    @tool(ToolType.GENERIC)
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the user to a human: only when asked for, or when the policy and the tools cannot solve the problem.

        Args:
            summary: What the user needs, in a sentence.
        """
        return "Transfer successful"

    @helper
    def assert_number_of_tasks(self, user_id: str, expected_number: int) -> bool:
        """Whether the user has that many tasks."""
        if user_id not in self.db.users:
            raise ValueError(f"User {user_id} not found")
        return len(self.db.users[user_id].tasks) == expected_number

    @helper
    def assert_task_status(self, task_id: str, expected_status: TaskStatus) -> bool:
        """Whether the task has that status."""
        if task_id not in self.db.tasks:
            raise ValueError(f"Task {task_id} not found")
        return self.db.tasks[task_id].status == expected_status
