"""The customer's side of a conversation, as the environment sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from envs.types import StopReason, Task


@dataclass(frozen=True)
class UserReply:
    """What the user answered; `stop` when that ends the conversation."""

    text: str
    stop: StopReason | None = None


class User(Protocol):
    """A simulated customer. One instance plays one conversation at a time."""

    def reset(self, task: Task, seed: int | None) -> None:
        """Get ready for a new conversation about `task`."""

    def opening(self) -> str:
        """The answer to the agent's greeting."""

    def reply(self, message: str) -> UserReply:
        """The answer to what the agent said."""
