"""Harmony, the format of gpt-oss: channels for thinking, calls and the final answer.

    <|channel|>analysis<|message|>I need the order.<|end|><|start|>assistant<|channel|>commentary
    to=functions.get_order_details <|constrain|>json<|message|>{"order_id": "#W2611340"}<|call|>

Needs text that was decoded with special tokens. Own, since vLLM's wants token ids and a vocabulary from the network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.types import Action, AgentTurn
from rollouts.parsers.base import CallError, Parser, call_json, called, read_call, read_json, refused, said, strip_control

_ENDS = re.compile(r"<\|(?:end|call|return)\|>")
_OPENS = re.compile(r"<\|(?:start|channel|constrain|message)\|>")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class HarmonyParser(Parser):
    """Calls in any channel that has a recipient, the user's text in `final` (or in `commentary` without one)."""

    name = "harmony"

    def parse(self, text: str) -> AgentTurn:
        if "<|message|>" not in text:
            if _OPENS.search(text):
                return refused(self.name, "the header is not followed by <|message|>", strip_control(text))
            return said(self.name, strip_control(text))
        actions: list[Action] = []
        spoken: list[str] = []
        for part in _ENDS.split(text):
            header, marker, body = part.partition("<|message|>")
            if not marker:
                continue
            if _OPENS.search(body):
                return refused(self.name, "a message is not ended by <|end|>, <|call|> or <|return|>", strip_control(text))
            channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
            if recipient:
                try:
                    actions.append(read_call({"name": recipient.group(1), "arguments": read_json(body)}))
                except CallError as error:
                    return refused(self.name, f"the call of {recipient.group(1)} could not be read: {error}", strip_control(text))
            elif channel is None or channel.group(1) != "analysis":
                spoken.append(strip_control(body))
        content = "\n".join(line for line in spoken if line)
        if actions:
            return called(self.name, actions, content, text)
        if not content:
            return refused(self.name, "the message has no final answer and no call", strip_control(text))
        return said(self.name, content)

    def format_calls(self, actions: Sequence[Action]) -> str:
        if len(actions) != 1:
            raise ValueError("harmony writes one call a message")
        arguments = call_json(actions[0]).partition('"arguments": ')[2][:-1]
        return f"<|channel|>commentary to=functions.{actions[0].name} <|constrain|>json<|message|>{arguments}<|call|>"
