"""The mock customer's own tools: an inbox. They answer what τ²-bench v1.0.1 answers (`domains/mock/user_tools.py`)."""

from __future__ import annotations

from envs.mock.models import MockUserDB, Notification
from envs.toolkit import ToolKit, ToolType, helper, tool


class MockUserTools(ToolKit):
    """What the customer sees and does on their side."""

    db: MockUserDB

    @tool(ToolType.READ)
    def check_notifications(self) -> list[Notification]:
        """All notifications in your inbox."""
        return self.db.notifications.rows()

    @tool(ToolType.WRITE)
    def dismiss_notification(self, notification_id: str) -> str:
        """Mark a notification as read.

        Args:
            notification_id: The notification's id, such as 'notif_1'.
        """
        if notification_id not in self.db.notifications:
            raise ValueError(f"Notification {notification_id} not found")
        self.db.notifications.edit(notification_id).status = "read"
        return f"Notification {notification_id} dismissed"

    @helper
    def add_notification(self, notification_id: str, message: str, task_id: str | None = None) -> Notification:
        """Put a new notification into the inbox."""
        notification = Notification(notification_id=notification_id, message=message, task_id=task_id)
        self.db.notifications.add(notification_id, notification)
        return notification

    @helper
    def assert_notification_status(self, notification_id: str, expected_status: str) -> bool:
        """Whether the notification has that status."""
        if notification_id not in self.db.notifications:
            raise ValueError(f"Notification {notification_id} not found")
        return self.db.notifications[notification_id].status == expected_status
