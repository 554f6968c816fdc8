"""Structured decoding: a grammar with which the policy cannot write a malformed tool call (`rollout.structured=true`).

    tool_call_grammar("hermes", domain.tool_schemas)

Text stays free until a call begins; from there on only a tool that exists, with arguments that fit its schema, can be sampled.
Off by default: what the policy would have got wrong is then neither seen nor unlearnt. A turn that is cut off by its token limit
can still end within a call. The grammar is a structural tag of xgrammar, which vLLM takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from envs.errors import TaudojoError

#: parser → what a call begins with, what stands before the arguments of a tool, and what ends it.
_FORMS = {
    "hermes": ("<tool_call>", '<tool_call>\n{{"name": {name}, "arguments": ', "}\n</tool_call>"),
    "llama3_json": ('{"name":', '{{"name": {name}, "parameters": ', "}"),
}
_FORMS["qwen3"] = _FORMS["hermes"]


def tool_call_grammar(parser: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """The grammar of messages in this parser's format, as JSON. `tools`: OpenAI function schemas.

    Raises:
        TaudojoError: there is no grammar for this parser.
    """
    if parser not in _FORMS:
        raise TaudojoError(
            f"rollout.structured=true knows the formats {', '.join(sorted(_FORMS))}, and model.tool_parser is {parser}; "
            "set rollout.structured=false"
        )
    trigger, begin, end = _FORMS[parser]
    tags = [
        {
            "type": "tag",
            "begin": begin.format(name=json.dumps(tool["function"]["name"])),
            "content": {"type": "json_schema", "json_schema": tool["function"]["parameters"]},
            "end": end,
        }
        for tool in tools
    ]
    return json.dumps({"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": [trigger], "tags": tags}})
