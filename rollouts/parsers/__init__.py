"""Tool-call parsers by name.

>>> get_parser("hermes").parse('<tool_call>{"name": "calculate", "arguments": {"expression": "1+1"}}</tool_call>').actions[0].name
'calculate'
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
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


def get_parser(name: str, tokenizer: Any = None) -> Parser:
    """The parser of that name; `vllm:<family>` is vLLM's own and wants the model's tokenizer."""
    if name.startswith("vllm:"):
        if tokenizer is None:
            raise TaudojoError(f"tool_parser={name} wants the model's tokenizer.")
        from rollouts.parsers.vllm import VllmParser

        return VllmParser(name.removeprefix("vllm:"), tokenizer)
    if name not in PARSERS:
        near = difflib.get_close_matches(name, PARSERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PARSERS)}, vllm:<family>."
        raise TaudojoError(f"No tool parser is called {name}; {hint}")
    return PARSERS[name]()
