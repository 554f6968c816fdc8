"""Llama 3.x: bare JSON objects with `parameters`, several joined by `;`, perhaps after `<|python_tag|>`.

{"name": "get_order_details", "parameters": {"order_id": "#W2611340"}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from envs.types import Action, AgentTurn
from rollouts.parsers.base import CallError, Parser, call_json, called, read_call, read_json, refused, said, strip_control

_TAG = "<|python_tag|>"
_FENCE = re.compile(r"```\w*\Z")
_HINT = 'Write {"name": ..., "parameters": {...}}'


class Llama3JsonParser(Parser):
    """Every JSON object of the message must be a call. What neither begins with a brace nor names one is text."""

    name = "llama3_json"

    def parse(self, text: str) -> AgentTurn:
        text = strip_control(text)
        tagged = _TAG in text
        text = text.replace(_TAG, "").strip()
        start = text.find("{")
        if start < 0:
            return refused(self.name, f"no JSON object after {_TAG}", text, _HINT) if tagged else said(self.name, text)
        meant_as_call = tagged or start == 0 or '"name"' in text[start:]
        try:
            actions = self._read_objects(text, start)
        except CallError as error:
            if meant_as_call:
                return refused(self.name, f"the tool call could not be read: {error}", text, _HINT)
            return said(self.name, text)
        return called(self.name, actions, _words(text[:start]), text)

    def format_calls(self, actions: Sequence[Action]) -> str:
        return "; ".join(call_json(action, key="parameters") for action in actions)

    def _read_objects(self, text: str, start: int) -> list[Action]:
        decoder = json.JSONDecoder(strict=False)
        actions: list[Action] = []
        at = start
        while at >= 0:
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                if actions:
                    raise CallError(f"what follows the call {actions[-1].name} is not valid JSON") from None
                value, end = read_json(text[at:].removesuffix("```")), len(text)
            actions.append(read_call(value))
            at = text.find("{", end)
        return actions


def _words(before: str) -> str:
    """What was said before the first object, without the code fence or the bracket that opens around it."""
    return _FENCE.sub("", before.rstrip().removesuffix("[").rstrip()).strip()
