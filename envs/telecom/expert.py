"""The agent that plays a task's gold actions in the tone we want to teach. What the customer does in the gold trajectory, it asks
for, in words that `PhoneUser` understands; it looks before it acts, and has the result tested.

>>> agent = GoldAgent(domain, task)
>>> while not env.done:
...     env.step(agent.next_turn(env.transcript))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from envs.domain import Domain
from envs.expert import TRANSFER_WORDS
from envs.telecom.models import Line, TelecomDatabase
from envs.types import Action, AgentTurn, Task, Transcript

LAST_WORDS = "Your problem is solved. Is there anything else I can help you with?"

#: What the agent has checked on the phone before it asks for a change.
_CHECKS = {
    "toggle_airplane_mode": "Please check your network status.",
    "toggle_data": "Please check your network status.",
    "toggle_roaming": "Please check your network status.",
    "reseat_sim_card": "Please check your SIM card.",
    "toggle_data_saver_mode": "Please check whether data saver is on.",
    "set_network_mode_preference": "Please check your network mode preference.",
    "disconnect_vpn": "Please check your VPN.",
    "toggle_wifi_calling": "Please check whether Wi-Fi Calling is on.",
    "grant_app_permission": "Please check the permissions of the messaging app.",
    "reset_apn_settings": "Please check your APN settings.",
}
#: The words for a change. The switches are worded as τ²'s problems need them.
_REQUESTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "toggle_airplane_mode": lambda a: "Please turn airplane mode off.",
    "toggle_data": lambda a: "Please turn mobile data on.",
    "toggle_roaming": lambda a: "Please turn data roaming on.",
    "reseat_sim_card": lambda a: "Please reseat your SIM card.",
    "toggle_data_saver_mode": lambda a: "Please turn data saver mode off.",
    "set_network_mode_preference": lambda a: f"Please set your network mode preference to {a['mode']}.",
    "disconnect_vpn": lambda a: "Please disconnect your VPN.",
    "toggle_wifi_calling": lambda a: "Please turn Wi-Fi Calling off.",
    "grant_app_permission": lambda a: f"Please grant the '{a['app_name']}' app the {a['permission']} permission.",
    "reset_apn_settings": lambda a: "Please reset your APN settings.",
    "reboot_device": lambda a: "Please restart your phone.",
    "make_payment": lambda a: "I have sent you a payment request. Please check it and make the payment.",
}
#: How the customer is asked to test the result, by the assertion that decides.
_TESTS = {
    "assert_can_send_mms": "Please try to send an MMS message.",
    "assert_internet_speed": "Please run a speed test.",
    "assert_service_status": "Please check your status bar.",
}


class GoldAgent:
    """Plays `task`. Keeps no state: how many turns the transcript has says where it is."""

    def __init__(self, domain: Domain, task: Task) -> None:
        self._turns = tuple(_turns(cast(TelecomDatabase, domain.database), task))

    def next_turn(self, transcript: Transcript) -> AgentTurn:
        """The turn after `transcript`, whose turns so far are this agent's."""
        done = sum(message.role == "assistant" for message in transcript.messages) - 1  # the greeting is no turn
        return self._turns[min(done, len(self._turns) - 1)]


def _turns(db: TelecomDatabase, task: Task) -> Iterator[AgentTurn]:
    line = _customers_line(db, task)
    known: set[str] = set()
    if line:
        yield _call("get_customer_by_phone", phone_number=line.phone_number)
    for action in task.gold_actions:
        for turn in _checks(action) if action.requestor == "user" else _looks(action, line):
            if (what := repr(turn)) not in known:
                known.add(what)
                yield turn
        if action.requestor == "user":
            yield AgentTurn(request(action))
            if action.name == "make_payment":  # whether it was paid must be looked up again
                known = {what for what in known if "get_bills_for_customer" not in what}
        else:
            if action.name == "refuel_data":
                yield AgentTurn(_refuel_question(db, action))
            yield AgentTurn(actions=(action,))
    if any(action.name == "transfer_to_human_agents" for action in task.gold_actions):
        yield AgentTurn(TRANSFER_WORDS)
        return
    asserted = {assertion["func_name"] for assertion in task.criteria.get("env_assertions") or ()}
    yield from (AgentTurn(words) for name, words in _TESTS.items() if name in asserted)
    yield AgentTurn(LAST_WORDS)


def _customers_line(db: TelecomDatabase, task: Task) -> Line | None:
    """The line whose number the scenario tells."""
    told = re.search(r"\b\d{3}-\d{3}-\d{4}\b", task.instructions.get("known_info") or "")
    lines = db.lines.where("phone_number", lambda line: line.phone_number, told[0]) if told else ()
    return next(iter(lines), None)


def request(action: Action) -> str:
    """A customer's action in the agent's words."""
    return _REQUESTS[action.name](action.arguments) if action.name in _REQUESTS else f"Please use {action.name}."


def _checks(action: Action) -> Iterator[AgentTurn]:
    if action.name in _CHECKS:
        yield AgentTurn(_CHECKS[action.name])


def _looks(action: Action, line: Line | None) -> Iterator[AgentTurn]:
    """What the agent finds out before it acts."""
    customer_id = action.arguments.get("customer_id")
    if action.name == "transfer_to_human_agents":
        yield AgentTurn(_CHECKS["reseat_sim_card"])
    if action.name in ("send_payment_request", "resume_line"):
        yield _call("get_bills_for_customer", customer_id=customer_id)
    if line is None:
        return
    if action.name == "refuel_data":
        yield _call("get_data_usage", customer_id=customer_id, line_id=line.line_id)
    yield _call("get_details_by_id", id=line.line_id)
    if action.name == "refuel_data":
        yield _call("get_details_by_id", id=line.plan_id)


def _call(name: str, **arguments: Any) -> AgentTurn:
    return AgentTurn(actions=(Action(name, arguments),))


def _refuel_question(db: TelecomDatabase, action: Action) -> str:
    line_id, amount_gb = action.arguments["line_id"], action.arguments["gb_amount"]
    price = amount_gb * db.plans[db.lines[line_id].plan_id].data_refueling_price_per_gb
    return f"I will add {amount_gb} GB of data to line {line_id} for ${price:.2f}. Do you confirm (yes/no)?"
