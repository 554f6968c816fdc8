"""The OpenAI message as text: `{"tool_calls": [{"function": {"name", "arguments"}}]}`.

For models that were taught to answer with the API's own JSON. `arguments` may be an object or a string that holds one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from envs.types import Action, AgentTurn
from rollouts.parsers.base import CallError, Parser, called, looks_like_call, read_call, read_json, refused, said, strip_control

_HINT = 'Write {"tool_calls": [{"function": {"name": ..., "arguments": {...}}}]}'


class OpenAIParser(Parser):
    """The whole message is the JSON object. What is not is text, unless it speaks of `tool_calls` or begins as a bare call."""

    name = "openai"

    def parse(self, text: str) -> AgentTurn:
        text = strip_control(text)
        meant_as_call = '"tool_calls"' in text or "'tool_calls'" in text or looks_like_call(text)
        try:
            value = read_json(text)
        except CallError as error:
            if meant_as_call:
                return refused(self.name, f"the tool call could not be read: {error}", text, _HINT)
            return said(self.name, text)
        if not isinstance(value, dict) or not ({"tool_calls", "content"} & value.keys()):
            if meant_as_call:
                return refused(self.name, 'a tool call must stand in the list "tool_calls" of one JSON object', text, _HINT)
            return said(self.name, text)
        return self._read_message(value, text)

    def format_calls(self, actions: Sequence[Action]) -> str:
        calls = [{"function": {"name": action.name, "arguments": dict(action.arguments)}} for action in actions]
        return json.dumps({"tool_calls": calls}, ensure_ascii=False)

    def _read_message(self, message: dict[str, Any], text: str) -> AgentTurn:
        content = message.get("content")
        spoken = content.strip() if isinstance(content, str) else ""
        calls = message.get("tool_calls") or []
        if not calls:
            return said(self.name, spoken) if spoken else refused(self.name, "the message is empty", text)
        try:
            if not isinstance(calls, list):
                raise CallError('"tool_calls" must be a list')
            actions = [read_call(call["function"] if isinstance(call, dict) and "function" in call else call) for call in calls]
        except CallError as error:
            return refused(self.name, f"the tool call could not be read: {error}", text, _HINT)
        return called(self.name, actions, spoken, text)
