"""The customer's side of a conversation, as the environment sees it.

A customer speaks, or acts on their own device first:

    UserReply("My data is slow.")
    UserReply("", actions=(Action("run_speed_test", {}, "user"),))

The environment runs such calls, shows the results to the customer alone (`observe`) and asks for the reply again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from envs.types import Action, Message, StopReason, Task


@dataclass(frozen=True)
class UserReply:
    """What the user answered; `stop` when that ends the conversation.

    With `actions` it is no answer yet: as in τ²-bench the agent does not hear the text, and `stop` does not count.
    """

    text: str
    stop: StopReason | None = None
    actions: tuple[Action, ...] = ()


class User(Protocol):
    """A simulated customer. One instance plays one conversation at a time; `copy.deepcopy` branches it.

    `opening` and `reply` of an asynchronous customer return an awaitable: its caller plays with `Env.open`, `begin`, `ask` and
    `finish` instead of `reset` and `step`.
    """

    def reset(self, task: Task, seed: int | None) -> None:
        """Get ready for a new conversation about `task`. One that has a `task.history` goes on from there."""

    def opening(self) -> str | UserReply:
        """The answer to the agent's greeting. Not asked for where the task has a history."""

    def reply(self, message: str) -> UserReply:
        """The answer to what the agent said; `""` when nothing new was said since the calls that `observe` answered."""


class ToolUser(User, Protocol):
    """A customer that makes calls of their own."""

    def observe(self, results: tuple[Message, ...]) -> None:
        """The tools' answers to the calls of the last reply, in their order. `reply("")` follows."""
