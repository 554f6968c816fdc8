"""For a model whose format is unknown: every family is tried, in a fixed order.

The order: harmony, hermes with thinking, the OpenAI form, Llama's bare JSON; the first that finds calls wins. When none does, the
first failure is returned, else the text. Meant for looking at an untrained model; a training run names its parser.
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
        turns = [parser.parse(text) for parser in self._order]
        chosen = next((turn for turn in turns if turn.actions), None) or next(
            (turn for turn in turns if turn.parse_failure), turns[0]
        )
        debug(self.name, "call" if chosen.actions else "failure" if chosen.parse_failure else "text", text)
        return chosen

    def format_calls(self, actions: Sequence[Action]) -> str:
        return self._writer.format_calls(actions)
