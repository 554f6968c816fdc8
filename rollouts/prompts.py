"""What the policy reads: the system prompt, and how a tool's answer looks.

Two styles. `official`: τ²-bench's structure, the domain's whole policy, JSON schemas through the chat format, answers as τ²
prints them (4,300 tokens for retail). `compact`: a domain's short rules with its tools as signatures, answers as plain lines
(460 tokens), for models with little context or little time. Either may end with a few example calls of the domain's own.

>>> system, tools = system_prompt(domain, "compact", get_parser("hermes"))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from envs.domain import Domain
from envs.errors import TaudojoError
from envs.protocols import CompactForm, Example
from envs.types import Action, Message, ToolResult
from rollouts.parsers import Parser

Style = Literal["compact", "official"]

_OFFICIAL = """\
<instructions>
You are a customer service agent. Help the user as the policy below says.
In each turn do one of two things: write a message to the user, or call a tool. Never both in the same turn.
Follow the policy in everything, and write tool calls as valid JSON.
</instructions>
<policy>
{policy}
</policy>"""

_SOLO = """\
<instructions>
You are a customer service agent. You are given a customer's request in writing, and solve it as the policy below says.
There is nobody to talk to: in each turn call one tool. The customer's device is at hand, and some of the tools work on it.
When the request is solved, call the tool done, alone. Follow the policy in everything, and write tool calls as valid JSON.
</instructions>
<policy>
{policy}
</policy>"""

_EXAMPLE = Action("tool", {"argument": "value"})


def system_prompt(
    domain: Domain, style: Style, parser: Parser, *, solo: bool = False, examples: Sequence[Example] = ()
) -> tuple[str, list[dict[str, Any]] | None]:
    """The system message and the schemas that the chat format has to show (None where the message lists the tools itself).

    Args:
        solo: The agent works alone, with the customer's tools beside its own; only in the official style.
        examples: Calls to show at the end, as `parser` writes them.
    """
    shown = _shown(examples, parser)
    if solo and style != "official":
        raise TaudojoError("Without a customer (user=solo) there is no compact prompt; set env.prompt=official.")
    if solo:
        return _SOLO.format(policy=domain.solo_policy) + shown, domain.solo_tool_schemas
    if style == "official":
        return _OFFICIAL.format(policy=domain.policy) + shown, domain.tool_schemas
    return f"{domain.compact.compact_policy(domain)}\nTo call a tool, write only:\n{parser.format_call(_EXAMPLE)}{shown}", None


def first_examples(domain: Domain, count: int) -> tuple[Example, ...]:
    """The first `count` of the domain's example calls.

    Raises:
        TaudojoError: the domain does not have so many, or `count` is negative.
    """
    if not 0 <= count <= len(domain.examples):
        raise TaudojoError(
            f"env.examples={count}, and the domain {domain.name} has {len(domain.examples)} example calls (its examples.py); "
            f"set env.examples to 0 … {len(domain.examples)}"
        )
    return domain.examples[:count]


def _shown(examples: Sequence[Example], parser: Parser) -> str:
    if not examples:
        return ""
    calls = [f"User: {said}\nYou:\n{parser.format_call(call)}" for said, call in examples]
    return "\n".join(["\n\nExamples of calls, with invented values:", *calls])


def render_observation(message: Message, style: Style, compact: CompactForm) -> str:
    """The text of a tool or user message in this style; `compact` is `Domain.compact`."""
    content = message.content or ""
    if style == "official" or message.role != "tool" or message.action is None:
        return content
    return compact.render_result(message.action, ToolResult(content, message.error))
