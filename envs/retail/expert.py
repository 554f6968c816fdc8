"""The agent that plays a task's gold actions in the tone we want to teach: one call a turn, a confirmation that names the
action before every write, a short last word. Its conversations are the SFT data, and the proof that a task can be solved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from envs.domain import Domain
from envs.expert import TRANSFER_WORDS
from envs.types import Action, AgentTurn, Task, Transcript


class GoldAgent:
    """Plays `task`. Keeps no state: the transcript says where it is, so it can also take over from another agent's start."""

    def __init__(self, domain: Domain, task: Task) -> None:
        self._write_tools = domain.write_tools
        self._actions = tuple(action for action in task.gold_actions if action.requestor == "assistant")
        self._task = task

    def next_turn(self, transcript: Transcript) -> AgentTurn:
        """The turn after `transcript`, whose calls so far are the first of the gold ones."""
        done = len(transcript.calls)
        if done >= len(self._actions):
            return AgentTurn(self._last_words())
        action = self._actions[done]
        if action.name in self._write_tools:
            question = confirmation(action)
            # The last three lines: our question, the customer's answer, nothing since.
            asked = [message.content for message in transcript.messages[-2:] if message.role == "assistant"]
            if question not in asked:
                return AgentTurn(question)
        return AgentTurn(actions=(action,))

    def _last_words(self) -> str:
        if any(action.name == "transfer_to_human_agents" for action in self._actions):
            return " ".join([*self._task.communicate_info, TRANSFER_WORDS])
        notes = (self._task.raw.get("description") or {}).get("notes")
        if self._task.kind != "official" and notes:
            return str(notes)
        outcomes = [_OUTCOMES[a.name](a.arguments) for a in self._actions if a.name in _OUTCOMES]
        info = "; ".join(self._task.communicate_info)
        return " ".join([*outcomes, f"The answer is {info}." if info else ""]).strip() or "I cannot do that."


def confirmation(action: Action) -> str:
    """The question before a write."""
    return f"I will {describe(action)}. Do you confirm (yes/no)?"


def describe(action: Action) -> str:
    """A write in words, its arguments in the order of the call."""
    return _WORDS[action.name](action.arguments) if action.name in _WORDS else action.name.replace("_", " ")


def address_text(arguments: Mapping[str, Any]) -> str:
    """The parts of an address that are there, in the order of the tools' arguments."""
    parts = (arguments.get(name, "") for name in ("address1", "address2", "city", "state", "country", "zip"))
    return ", ".join(part for part in parts if part)


def _pairs(arguments: Mapping[str, Any], between: str) -> str:
    pairs = zip(arguments["item_ids"], arguments["new_item_ids"], strict=False)
    return " and ".join(f"item {old} {between} {new}" for old, new in pairs)


_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "cancel_pending_order": lambda a: f"cancel order {a['order_id']} because {a['reason']}",
    "return_delivered_order_items": lambda a: (
        f"return from order {a['order_id']} item {' and item '.join(a['item_ids'])} with the refund to {a['payment_method_id']}"
    ),
    "exchange_delivered_order_items": lambda a: (
        f"exchange in order {a['order_id']} {_pairs(a, 'for')} with payment method {a['payment_method_id']}"
    ),
    "modify_pending_order_items": lambda a: (
        f"change in order {a['order_id']} {_pairs(a, 'to')} with payment method {a['payment_method_id']}"
    ),
    "modify_pending_order_payment": lambda a: f"change the payment of order {a['order_id']} to {a['payment_method_id']}",
    "modify_pending_order_address": lambda a: f"change the address of order {a['order_id']} to {address_text(a)}",
    "modify_user_address": lambda a: f"change the address of user {a['user_id']} to {address_text(a)}",
}

_OUTCOMES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "cancel_pending_order": lambda a: f"Order {a['order_id']} is cancelled.",
    "return_delivered_order_items": lambda a: f"The return for order {a['order_id']} is requested.",
    "exchange_delivered_order_items": lambda a: f"The exchange for order {a['order_id']} is requested.",
    "modify_pending_order_items": lambda a: f"The items of order {a['order_id']} are changed.",
    "modify_pending_order_payment": lambda a: f"The payment of order {a['order_id']} is changed.",
    "modify_pending_order_address": lambda a: f"The address of order {a['order_id']} is changed.",
    "modify_user_address": lambda a: "Your default address is changed.",
}
