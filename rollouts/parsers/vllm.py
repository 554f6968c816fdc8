"""vLLM's own tool parsers behind our interface, for families without a small one here: `get_parser("vllm:mistral", tokenizer)`.

They only read. Gold turns for such a model are written by its chat template (`chat.format: template`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from envs.errors import TaudojoError
from envs.types import Action, AgentTurn
from rollouts.parsers.base import CallError, Parser, called, read_call, refused, said, strip_control


class VllmParser(Parser):
    """One of vLLM's parsers. What it cannot read it hands back as text, so `parse_failure` is rarer than with our own.

    Args:
        tools: The functions' schemas. Formats that write every argument as bare text (qwen3_coder, minimax_m2) get its type from
            there; without them each is a string.
    """

    def __init__(self, family: str, tokenizer: Any, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tool_parsers import ToolParserManager

        self.name = f"vllm:{family}"
        if family in ("openai", "gpt_oss"):
            raise TaudojoError("vLLM reads gpt-oss from token ids only; use tool_parser=harmony.")
        try:
            parser_class = ToolParserManager.get_tool_parser(family)
        except KeyError as error:
            raise TaudojoError(f"vLLM has no tool parser {family}; see `vllm serve --help` under --tool-call-parser.") from error
        self._request = ChatCompletionRequest.model_validate({"messages": [], "model": "", "tools": list(tools) or None})
        typed: Any = self._request.tools
        try:
            self._make = lambda: parser_class(tokenizer, typed)
            self._make()
        except (RuntimeError, ValueError) as error:
            raise TaudojoError(
                f"tool_parser=vllm:{family} does not fit the model's tokenizer ({error}); choose the model's own."
            ) from error

    def parse(self, text: str) -> AgentTurn:
        try:
            found = self._make().extract_tool_calls(text, self._request)
            calls = [{"name": call.function.name, "arguments": call.function.arguments} for call in found.tool_calls]
        except Exception as error:  # their parsers raise what they like; here a failure is data
            return refused(self.name, f"the tool call could not be read: {error}", strip_control(text))
        content = strip_control(found.content or "")
        if not calls and not content and text.strip():  # minimax_m2 drops the call of a function that does not exist
            return refused(self.name, "the tool call could not be read", strip_control(text))
        if not calls:
            return said(self.name, content)
        try:
            for call in calls:
                json.loads(call["arguments"])
            return called(self.name, [read_call(call) for call in calls], content, text)
        except (CallError, ValueError) as error:
            return refused(self.name, f"the tool call could not be read: {error}", strip_control(text))

    def format_calls(self, actions: Sequence[Action]) -> str:
        needed = "model.chat.format=template, env.prompt=official and env.examples=0"
        raise TaudojoError(f"{self.name} cannot write calls; set {needed}.")
