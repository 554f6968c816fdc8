"""Play a list of calls on a task, without agent and customer: what recordings and audits have in common.

>>> transcript, toolkit = play_calls(task, domain, task.gold_actions)
>>> evaluate(task, transcript, domain).reward
1.0
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.domain import Domain
from envs.toolkit import ToolKit
from envs.types import GREETING, Action, Message, StopReason, Task, Transcript


def play_calls(
    task: Task, domain: Domain, calls: Sequence[Action], say: str = "", stop: StopReason = StopReason.USER_STOP
) -> tuple[Transcript, ToolKit]:
    """The conversation in which these calls are made one after the other, then `say` is said; and the databases after it.

    Raises:
        TaudojoError: the task's initial state does not fit the domain.
    """
    toolkit = domain.new_toolkit(task)
    messages = list(task.history) or [Message("assistant", GREETING)]
    for action in calls:
        result = toolkit.use(action)
        messages.append(Message(action.requestor, None, actions=(action,)))
        messages.append(Message("tool", result.content, action=action, error=result.error))
    if say:
        messages.append(Message("assistant", say))
    if stop is StopReason.USER_STOP:
        messages.append(Message("user", "###STOP###"))
    return Transcript(task.id, domain.name, tuple(messages), stop), toolkit
