"""The agent that plays a task's gold actions, for domains without an expert of their own (`envs/<domain>/expert.py`).

>>> agent = domain.expert(task)
>>> while not env.done:
...     env.step(agent.next_turn(env.transcript))

One call a turn, before every write a question that names it, a short last word. What the gold trajectory has the customer do is
left to the customer; an agent that works alone (solo mode) does that too, asks nobody, and ends with `done`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from envs.types import DONE, Action, AgentTurn, Message, Task, Transcript

if TYPE_CHECKING:
    from envs.domain import Domain

TRANSFER_WORDS = "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON."


class GoldAgent:
    """Plays `task`. Keeps no state: the transcript says where it is."""

    def __init__(self, domain: Domain, task: Task, *, solo: bool = False) -> None:
        self._write_tools = domain.write_tools
        self._actions = tuple(action for action in task.gold_actions if solo or action.requestor == "assistant")
        self._task = task
        self._solo = solo
        self._calls_before = _agents_calls(task.history)

    def next_turn(self, transcript: Transcript) -> AgentTurn:
        """The turn after `transcript`, whose calls so far are the first of the gold ones."""
        done = _agents_calls(transcript.messages) - self._calls_before
        if done >= len(self._actions):
            return AgentTurn(actions=(Action(DONE),)) if self._solo else AgentTurn(self._last_words())
        action = self._actions[done]
        if action.name in self._write_tools and not self._solo:
            question = confirmation(action)
            # The last two lines: our question and the customer's answer.
            if question not in [message.content for message in transcript.agent_messages[-2:] if message.role == "assistant"]:
                return AgentTurn(question)
        return AgentTurn(actions=(action,))

    def _last_words(self) -> str:
        info = "; ".join(self._task.communicate_info)
        answer = f"The answer is {info}." if info else ""
        if any(action.name == "transfer_to_human_agents" for action in self._actions):
            return f"{answer} {TRANSFER_WORDS}".strip()
        if any(action.name in self._write_tools for action in self._actions):
            return f"It is done. {answer}".strip()
        return answer or "There is nothing more that I can do for you."


def confirmation(action: Action) -> str:
    """The question before a write."""
    arguments = ", ".join(f"{name.replace('_', ' ')} {_spoken(value)}" for name, value in action.arguments.items())
    return f"I will {action.name.replace('_', ' ')}: {arguments}. Do you confirm (yes/no)?"


def _spoken(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _agents_calls(messages: Sequence[Message]) -> int:
    return sum(m.role == "tool" and m.action is not None and m.action.requestor == "assistant" for m in messages)
