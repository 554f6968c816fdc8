"""ChatML with hermes-style tools: the chat format of small models that have none of their own, once in Python and once as Jinja.

A conversation, `tool_tags` on:

    <|im_start|>system
    {system}

    # Tools ... <tools> one JSON schema per line </tools> ...<|im_end|>
    <|im_start|>user
    Where is my order?<|im_end|>
    <|im_start|>assistant
    <tool_call>
    {"name": "get_order_details", "arguments": {"order_id": "#W1"}}
    </tool_call><|im_end|>
    <|im_start|>tool
    <tool_response>
    {"status": "pending"}
    </tool_response><|im_end|>

`rollouts.chat` renders it piece by piece; the Jinja form is what a served model is given. A test holds the two equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

START, END = "<|im_start|>", "<|im_end|>"

TOOLS_HEAD = "# Tools\nYou can call these functions:\n<tools>\n"
TOOLS_TAIL = (
    "\n</tools>\nTo call one, write only\n<tool_call>\n"
    '{"name": <function name>, "arguments": {<argument name>: <value>}}\n</tool_call>'
)


def system_text(system: str, tools: Sequence[Mapping[str, Any]] | None) -> str:
    """The system message's content: the given text, then the tools' schemas."""
    if not tools:
        return system
    schemas = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return f"{system}\n\n{TOOLS_HEAD}{schemas}{TOOLS_TAIL}" if system else f"{TOOLS_HEAD}{schemas}{TOOLS_TAIL}"


def tool_text(content: str, tags: bool) -> str:
    """A tool result as the conversation shows it."""
    return f"<tool_response>\n{content}\n</tool_response>" if tags else content


def chat_template(tool_role: str = "tool", tool_tags: bool = True) -> str:
    """The same format as a Hugging Face chat template (Jinja)."""
    head, tail = json.dumps(TOOLS_HEAD), json.dumps(TOOLS_TAIL)
    before, after = ("<tool_response>\\n", "\\n</tool_response>") if tool_tags else ("", "")
    return (
        "{%- set has_system = messages and messages[0].role == 'system' -%}\n"
        "{%- if has_system or tools -%}\n"
        f"{{{{- '{START}system\\n' -}}}}\n"
        "{%- if has_system -%}{{- messages[0].content -}}{%- endif -%}\n"
        "{%- if tools -%}\n"
        "{%- if has_system and messages[0].content -%}{{- '\\n\\n' -}}{%- endif -%}\n"
        f"{{{{- {head} -}}}}\n"
        "{%- for tool in tools -%}{{- tool | tojson -}}{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}{%- endfor -%}\n"
        f"{{{{- {tail} -}}}}\n"
        "{%- endif -%}\n"
        f"{{{{- '{END}\\n' -}}}}\n"
        "{%- endif -%}\n"
        "{%- for message in messages -%}\n"
        "{%- if message.role == 'system' -%}\n"
        f"{{%- if not loop.first -%}}{{{{- '{START}system\\n' + message.content + '{END}\\n' -}}}}{{%- endif -%}}\n"
        "{%- elif message.role == 'tool' -%}\n"
        f"{{{{- '{START}{tool_role}\\n{before}' + message.content + '{after}{END}\\n' -}}}}\n"
        "{%- elif message.role == 'assistant' -%}\n"
        f"{{{{- '{START}assistant\\n' -}}}}\n"
        "{%- if message.content -%}{{- message.content -}}{%- endif -%}\n"
        "{%- for call in message.tool_calls or [] -%}\n"
        "{%- if message.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}\n"
        "{%- set function = call.function if call.function else call -%}\n"
        '{{- \'<tool_call>\\n{"name": "\' + function.name + \'", "arguments": \' -}}\n'
        "{{- function.arguments if function.arguments is string else function.arguments | tojson -}}\n"
        "{{- '}\\n</tool_call>' -}}\n"
        "{%- endfor -%}\n"
        f"{{{{- '{END}\\n' -}}}}\n"
        "{%- else -%}\n"
        f"{{{{- '{START}' + message.role + '\\n' + message.content + '{END}\\n' -}}}}\n"
        "{%- endif -%}\n"
        "{%- endfor -%}\n"
        f"{{%- if add_generation_prompt -%}}{{{{- '{START}assistant\\n' -}}}}{{%- endif -%}}\n"
    )
