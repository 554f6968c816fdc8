"""Hermes: `<tool_call>` tags around one JSON object each. SmolLM2 as we train it, Qwen2.5, Hermes, and Qwen3 with its thinking.

Let me look.
<tool_call>
{"name": "get_order_details", "arguments": {"order_id": "#W2611340"}}
</tool_call>
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.types import Action, AgentTurn
from rollouts.parsers.base import (
    CallError,
    Parser,
    call_json,
    called,
    looks_like_call,
    read_call,
    read_json,
    refused,
    said,
    strip_control,
)

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_HINT = 'Write <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'


class HermesParser(Parser):
    """Tags and JSON; one bad call refuses the whole message, as vLLM does. Words after the first tag are dropped."""

    name = "hermes"

    def parse(self, text: str) -> AgentTurn:
        return self._parse_answer(strip_control(text))

    def format_calls(self, actions: Sequence[Action]) -> str:
        return "\n".join(f"{_OPEN}\n{call_json(action)}\n{_CLOSE}" for action in actions)

    def _parse_answer(self, text: str) -> AgentTurn:
        before, tag, _ = text.partition(_OPEN)
        if not tag:
            if _CLOSE in text:
                return refused(self.name, f"{_CLOSE} without {_OPEN}", text, _HINT)
            if looks_like_call(text):
                return refused(self.name, f"a tool call must stand between {_OPEN} and {_CLOSE}", text, _HINT)
            return said(self.name, text)
        if text.rfind(_OPEN) > text.rfind(_CLOSE):
            return refused(self.name, f"the tool call is not closed by {_CLOSE}", text, _HINT)
        try:
            actions = [read_call(read_json(body)) for body in _CALL.findall(text)]
        except CallError as error:
            return refused(self.name, f"the tool call could not be read: {error}", text, _HINT)
        return called(self.name, actions, before.strip(), text)


class Qwen3Parser(HermesParser):
    """Hermes after Qwen3's `<think>…</think>`, which is dropped: it is neither said to the user nor searched for calls."""

    name = "qwen3"

    def parse(self, text: str) -> AgentTurn:
        text = strip_control(text)
        thought, closed, answer = text.partition("</think>")
        if closed and (thought.startswith("<think>") or _OPEN not in thought):
            text = answer.strip()
        elif text.startswith("<think>"):
            return refused(self.name, "the thinking is not closed by </think>", text)
        return self._parse_answer(text)
