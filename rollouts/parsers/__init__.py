"""Tool-call parsers by name.

>>> get_parser("hermes").parse('<tool_call>{"name": "calculate", "arguments": {"expression": "1+1"}}</tool_call>').actions[0].name
'calculate'

Who reads a message, in this order:

1. The parser that `model.tool_parser` names, and no other: hermes, qwen3, llama3_json, openai and harmony are written here,
   `vllm:<family>` is vLLM's own. A named parser never falls back on another, since a server would not either.
2. `auto` asks harmony where the text has `<|message|>`, else qwen3 (which reads hermes), openai and llama3_json, and believes the
   first that finds a call, else the first that refuses, else it is text (`rollouts/parsers/auto.py`).

Whoever reads it, the outcome is one of three: calls (with the words before them), text for the user, or a `parse_failure`: the
sentence that the model is told. Nothing raises. `DEBUG_PARSER=1` prints each verdict to stderr.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.errors import TaudojoError
from rollouts.parsers.auto import AutoParser
from rollouts.parsers.base import Parser
from rollouts.parsers.harmony import HarmonyParser
from rollouts.parsers.hermes import HermesParser, Qwen3Parser
from rollouts.parsers.llama3_json import Llama3JsonParser
from rollouts.parsers.openai import OpenAIParser

__all__ = ["PARSERS", "Parser", "get_parser"]

PARSERS: dict[str, Callable[[], Parser]] = {
    "hermes": HermesParser,
    "qwen3": Qwen3Parser,
    "llama3_json": Llama3JsonParser,
    "openai": OpenAIParser,
    "harmony": HarmonyParser,
    "auto": AutoParser,
}


def get_parser(name: str, tokenizer: Any = None, tools: Sequence[Mapping[str, Any]] = ()) -> Parser:
    """The parser of that name; `vllm:<family>` is vLLM's own and wants the model's tokenizer, and the schemas of the tools."""
    if name.startswith("vllm:"):
        if tokenizer is None:
            raise TaudojoError(f"tool_parser={name} wants the model's tokenizer.")
        from rollouts.parsers.vllm import VllmParser

        return VllmParser(name.removeprefix("vllm:"), tokenizer, tools)
    if name not in PARSERS:
        near = difflib.get_close_matches(name, PARSERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PARSERS)}, vllm:<family>."
        raise TaudojoError(f"No tool parser is called {name}; {hint}")
    return PARSERS[name]()
