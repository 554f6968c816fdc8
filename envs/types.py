"""The words that every package shares: tasks, actions, tool results, messages, transcripts.

Nothing here knows about tokens, models or rewards. A `Task` is τ²-bench's JSON, kept whole; the properties read it.

>>> task.gold_actions[0].name
'find_user_id_by_name_zip'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Requestor = Literal["assistant", "user"]
Role = Literal["assistant", "user", "tool"]

#: The agent's first line in every τ² conversation (τ²-bench, `DEFAULT_FIRST_AGENT_MESSAGE`).
GREETING = "Hi! How can I help you today?"

#: What a solo agent calls, or writes, when it is done (τ²-bench, `LLMSoloAgent`).
DONE, STOP_TOKEN = "done", "###STOP###"


class StopReason(StrEnum):
    """Every way an episode can end."""

    USER_STOP = "user_stop"  # the user said that all is done
    TRANSFER = "transfer"  # the user was handed to a human; the user ends the conversation (a user stop for τ²)
    OUT_OF_SCOPE = "out_of_scope"  # the user cannot go on from what the scenario says (a user stop for τ²)
    AGENT_STOP = "agent_stop"  # the agent ended a conversation that has no user (solo mode)
    MAX_STEPS = "max_steps"  # the turn limit was reached
    TOO_MANY_ERRORS = "too_many_errors"  # tool errors and malformed calls above the limit
    LOOP = "loop"  # the same call was repeated without end; stopped early, scored as `max_steps`
    CONTEXT_FULL = "context_full"  # no room for another turn in the model's context
    USER_ERROR = "user_error"  # the simulated user failed (not the agent's fault)
    ENGINE_ERROR = "engine_error"  # the inference engine failed (not the agent's fault)
    TIMEOUT = "timeout"  # the episode passed its deadline
    CANCELLED = "cancelled"  # the run was interrupted

    @property
    def official(self) -> bool:
        """Whether τ²-bench scores the episode (`user_stop` or `agent_stop`); every other ending is worth 0."""
        return self in _OFFICIAL_STOPS

    @property
    def agent_at_fault(self) -> bool:
        """Whether the ending says something about the policy. The others are excluded from advantages and counted."""
        return self not in _INFRASTRUCTURE_STOPS


_OFFICIAL_STOPS = {StopReason.USER_STOP, StopReason.TRANSFER, StopReason.OUT_OF_SCOPE, StopReason.AGENT_STOP}
_INFRASTRUCTURE_STOPS = {StopReason.USER_ERROR, StopReason.ENGINE_ERROR, StopReason.TIMEOUT, StopReason.CANCELLED}


@dataclass(frozen=True)
class Action:
    """One tool call."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    requestor: Requestor = "assistant"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "arguments": dict(self.arguments), "requestor": self.requestor}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Action:
        return cls(raw["name"], dict(raw.get("arguments") or {}), raw.get("requestor", "assistant"))


@dataclass(frozen=True)
class ToolResult:
    """What a tool answered: the string exactly as τ² prints it, and whether it is an error."""

    content: str
    error: bool = False


@dataclass(frozen=True)
class AgentTurn:
    """What the policy did in one turn: it speaks, or it calls tools, or it wrote something that does not parse."""

    content: str | None = None
    actions: tuple[Action, ...] = ()
    parse_failure: str | None = None


@dataclass(frozen=True)
class Message:
    """One line of a transcript. `actions` only on lines of the one who calls; `action` and `error` only on tool lines."""

    role: Role
    content: str | None
    actions: tuple[Action, ...] = ()
    action: Action | None = None  # the call that a tool line answers; None where the call did not parse
    error: bool = False
    parse_failure: str | None = None

    @property
    def is_users_own(self) -> bool:
        """Whether it is a call that the customer made on their own device, or its result: the agent sees neither."""
        if self.role == "tool":
            return self.action is not None and self.action.requestor == "user"
        return self.role == "user" and bool(self.actions)

    def to_json(self) -> dict[str, Any]:
        """JSON with only what is set."""
        raw: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.actions:
            raw["actions"] = [a.to_json() for a in self.actions]
        if self.action is not None:
            raw["action"] = self.action.to_json()
        if self.error:
            raw["error"] = True
        if self.parse_failure is not None:
            raw["parse_failure"] = self.parse_failure
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Message:
        return cls(
            role=raw["role"],
            content=raw["content"],
            actions=tuple(Action.from_json(a) for a in raw.get("actions", ())),
            action=Action.from_json(raw["action"]) if "action" in raw else None,
            error=raw.get("error", False),
            parse_failure=raw.get("parse_failure"),
        )


@dataclass(frozen=True)
class Transcript:
    """What happened, in words. `stop_reason` is None while the episode runs."""

    task_id: str
    domain: str
    messages: tuple[Message, ...]
    stop_reason: StopReason | None

    @property
    def calls(self) -> tuple[Action, ...]:
        """Every executed call, in order."""
        return tuple(m.action for m in self.messages if m.role == "tool" and m.action is not None)

    @property
    def agent_messages(self) -> tuple[Message, ...]:
        """What the agent reads and writes: all but the customer's own calls and their results."""
        return tuple(m for m in self.messages if not m.is_users_own)

    @property
    def parse_failures(self) -> int:
        return sum(m.parse_failure is not None for m in self.messages)

    def to_json(self) -> dict[str, Any]:
        return {
            "task_id": self.task_id,
            "domain": self.domain,
            "messages": [m.to_json() for m in self.messages],
            "stop_reason": self.stop_reason.value if self.stop_reason else None,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Transcript:
        stop = raw["stop_reason"]
        return cls(
            raw["task_id"],
            raw["domain"],
            tuple(Message.from_json(m) for m in raw["messages"]),
            StopReason(stop) if stop else None,
        )


@dataclass(frozen=True)
class Task:
    """One τ² task. `raw` is the JSON as it was read and is written back unchanged; nothing else is stored."""

    domain: str
    raw: Mapping[str, Any]
    source: str = "unknown"
    version: str = "unknown"

    @property
    def id(self) -> str:
        return str(self.raw["id"])

    @property
    def kind(self) -> str:
        """The sampler's template name, or `official`."""
        return str((self.raw.get("description") or {}).get("kind") or "official")

    @property
    def instructions(self) -> Mapping[str, Any]:
        """The user scenario's instructions; a plain string in the file is returned as `task_instructions`."""
        instructions = self.raw["user_scenario"]["instructions"]
        return {"task_instructions": instructions} if isinstance(instructions, str) else instructions

    @property
    def initial_state(self) -> Mapping[str, Any] | None:
        """What happened before the conversation: `initialization_data`, `initialization_actions`, `message_history`."""
        return self.raw.get("initial_state")

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation before the episode; empty for most tasks."""
        return read_history((self.initial_state or {}).get("message_history"))

    @property
    def ticket(self) -> str | None:
        """The request in writing, for an agent without a customer (solo mode)."""
        return self.raw.get("ticket")

    @property
    def criteria(self) -> Mapping[str, Any]:
        return self.raw.get("evaluation_criteria") or {}

    @property
    def gold_actions(self) -> tuple[Action, ...]:
        return tuple(Action.from_json(a) for a in self.criteria.get("actions") or ())

    @property
    def communicate_info(self) -> tuple[str, ...]:
        return tuple(self.criteria.get("communicate_info") or ())

    @property
    def reward_basis(self) -> tuple[str, ...]:
        basis = self.criteria.get("reward_basis")
        return ("DB", "COMMUNICATE") if basis is None else tuple(basis)


def read_history(raw: Sequence[Mapping[str, Any]] | None) -> tuple[Message, ...]:
    """The messages of a τ² `message_history`; a tool's answer is joined to its call by the call's id."""
    calls: dict[str, Action] = {}
    messages = []
    for line in raw or ():
        if line["role"] == "tool":
            messages.append(Message("tool", line.get("content"), action=calls.get(line["id"]), error=line.get("error", False)))
            continue
        made = {call["id"]: Action.from_json(call) for call in line.get("tool_calls") or ()}
        calls.update(made)
        messages.append(Message(line["role"], line.get("content"), actions=tuple(made.values())))
    return tuple(messages)
