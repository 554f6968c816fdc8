"""For a model whose format is unknown: every family is tried, in a fixed order.

1. A text with `<|message|>` is harmony's alone.
2. Of hermes with thinking, the OpenAI form and Llama's bare JSON, the first that finds calls wins.
3. When none does, the first of them that refuses the message is believed; when none refuses, the text is text.

Meant for looking at an untrained model; a training run names its parser. With `DEBUG_PARSER=1` each parser that was asked writes
its line, and the last line, `auto`, names the one that was believed.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.types import Action, AgentTurn
from rollouts.parsers.base import Parser, debug
from rollouts.parsers.harmony import HarmonyParser
from rollouts.parsers.hermes import Qwen3Parser
from rollouts.parsers.llama3_json import Llama3JsonParser
from rollouts.parsers.openai import OpenAIParser


class AutoParser(Parser):
    """The first of the parsers that finds a call; calls are written in hermes form."""

    name = "auto"

    def __init__(self) -> None:
        hermes = Qwen3Parser()
        self._writer = hermes
        self._order: tuple[Parser, ...] = (hermes, OpenAIParser(), Llama3JsonParser())
        self._harmony = HarmonyParser()

    def parse(self, text: str) -> AgentTurn:
        if "<|message|>" in text:
            return self._harmony.parse(text)
        turns = {parser.name: parser.parse(text) for parser in self._order}
        names = [name for name, turn in turns.items() if turn.actions] or [
            name for name, turn in turns.items() if turn.parse_failure
        ]
        chosen = names[0] if names else self._order[0].name
        debug(self.name, f"believes {chosen}", text)
        return turns[chosen]

    def format_calls(self, actions: Sequence[Action]) -> str:
        return self._writer.format_calls(actions)
