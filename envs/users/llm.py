"""A customer played by a language model, as τ²-bench simulates one, behind any OpenAI-compatible endpoint.

>>> endpoint = ChatEndpoint(EndpointSettings(model="gpt-4.1"))
>>> env = Env(domain, task, LLMUser.of(domain, endpoint))
>>> env.reset(seed=1)
>>> endpoint.usage.cost_usd

The prompt is τ²'s: its guidelines, read from the data source, then the scenario. The model sees the agent's words as its user's,
and its own as the assistant's. In domains where the customer has tools (telecom, mock) it may call them; the agent never sees
those calls. It ends the conversation with one of τ²'s three stop tokens. `AsyncLLMUser` is the same for a program that plays many
conversations at once: its words are to be awaited.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from envs.types import GREETING, Action, Message, StopReason, Task
from envs.users.base import UserReply
from envs.users.endpoint import Answer, ChatEndpoint, ModelCall, Usage

if TYPE_CHECKING:
    from envs.domain import Domain

#: What a model writes to end the conversation, by its meaning.
STOP_TOKENS = {
    "###STOP###": StopReason.USER_STOP,
    "###TRANSFER###": StopReason.TRANSFER,
    "###OUT-OF-SCOPE###": StopReason.OUT_OF_SCOPE,
}


class _Customer:
    """The conversation as the model sees it, in the messages of the chat-completions protocol.

    Args:
        guidelines: τ²'s `simulation_guidelines.md`, or `simulation_guidelines_tools.md` where there are tools.
        tools: The customer's tools in OpenAI's function format.

    Attributes:
        usage: What this conversation used; `endpoint.usage` counts all of them.
    """

    def __init__(self, endpoint: ChatEndpoint, guidelines: str, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self.usage = Usage()
        self._endpoint = endpoint
        self._guidelines = guidelines
        self._tools = tools
        self._messages: list[dict[str, Any]] = []
        self._open_calls: list[str] = []
        self._seed: int | None = None

    @classmethod
    def of(cls, domain: Domain, endpoint: ChatEndpoint) -> Self:
        """A customer of this domain. Raises TaudojoError where the data source has no guidelines."""
        name = "simulation_guidelines_tools.md" if domain.user_tool_schemas else "simulation_guidelines.md"
        guidelines = domain.source.file("user_simulator", name).read_text(encoding="utf-8")
        return cls(endpoint, guidelines, domain.user_tool_schemas)

    def reset(self, task: Task, seed: int | None) -> None:
        self._messages = [{"role": "system", "content": system_prompt(self._guidelines, task)}]
        self.usage = Usage()
        self._open_calls = []
        self._seed = seed
        history = task.history
        if history and history[-1].role == "assistant":
            history = history[:-1]  # the environment asks for the answer to it
        for message in history:
            self._remember(message)

    def observe(self, results: tuple[Message, ...]) -> None:
        for result in results:
            self._remember(result)

    def _hear(self, message: str) -> None:
        if message:
            self._messages.append({"role": "user", "content": message})

    def _say(self, answer: Answer) -> UserReply:
        self._speak(answer.content, answer.calls)
        if answer.calls:
            return UserReply("", actions=tuple(Action(call.name, call.arguments, "user") for call in answer.calls))
        text = answer.content or ""
        return UserReply(text, stop_of(text))

    def _remember(self, message: Message) -> None:
        """Take in a line of the transcript, if the customer knows of it."""
        if message.role == "user":
            self._speak(message.content, [ModelCall("", a.name, dict(a.arguments)) for a in message.actions])
        elif message.role == "assistant" and not message.actions:
            self._hear(message.content or "")
        elif message.role == "tool" and message.is_users_own and self._open_calls:
            self._messages.append({"role": "tool", "tool_call_id": self._open_calls.pop(0), "content": message.content})

    def _speak(self, content: str | None, calls: Sequence[ModelCall]) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            self._open_calls = [call.id or f"call_{len(self._messages)}_{n}" for n, call in enumerate(calls)]
            message["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
                for id, call in zip(self._open_calls, calls, strict=True)
            ]
        self._messages.append(message)


class LLMUser(_Customer):
    """One customer; the caller waits for its words."""

    def opening(self) -> UserReply:
        return self.reply(GREETING)

    def reply(self, message: str) -> UserReply:
        self._hear(message)
        return self._say(self._endpoint.ask(self._messages, self._tools, self._seed, self.usage))


class AsyncLLMUser(_Customer):
    """One customer among many; `opening` and `reply` are awaited."""

    async def opening(self) -> UserReply:
        return await self.reply(GREETING)

    async def reply(self, message: str) -> UserReply:
        self._hear(message)
        return self._say(await self._endpoint.aask(self._messages, self._tools, self._seed, self.usage))


def stop_of(text: str) -> StopReason | None:
    """The meaning of the first stop token in a customer's words."""
    found = {text.find(token): reason for token, reason in STOP_TOKENS.items() if token in text}
    return found[min(found)] if found else None


def system_prompt(guidelines: str, task: Task) -> str:
    """τ²-bench's prompt for the customer (`user_simulator.py`, `SYSTEM_PROMPT`), without a run-time persona."""
    return f"{guidelines.replace('<PERSONA_GUIDELINES>', '')}\n\n<scenario>\n{scenario(task)}\n</scenario>"


def scenario(task: Task) -> str:
    """The user scenario as τ²-bench prints it (`data_model/tasks.py`, `UserScenario`)."""
    persona, instructions = task.raw["user_scenario"].get("persona"), task.raw["user_scenario"]["instructions"]
    if not isinstance(instructions, str):
        instructions = _structured(instructions)
    blocks = [] if persona is None else ["Persona:", textwrap.indent(persona, "\t")]
    return "\n".join([*blocks, "Instructions:", textwrap.indent(instructions, "\t")])


def _structured(instructions: Mapping[str, Any]) -> str:
    lines = [f"Domain: {instructions['domain']}"]
    for key, title, required in (
        ("reason_for_call", "Reason for call", True),
        ("known_info", "Known info", False),
        ("unknown_info", "Unknown info", False),
        ("task_instructions", "Task instructions", True),
    ):
        text = instructions.get(key)
        if required or text is not None:
            lines.append(f"{title}:\n" + textwrap.indent(text or "", "\t"))
    return "\n".join(lines)
