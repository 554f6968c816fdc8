"""The short form of any domain: tools as signatures, tool results as plain lines.

    RULES = "You are a library agent. …"

    def compact_policy(domain: Domain) -> str:          # in envs/library/compact.py
        return with_tools(RULES, domain)

A domain without a `compact.py` shows its whole policy (`compact_policy` below) and has its results shortened by `render_result`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from envs.types import Action, ToolResult

if TYPE_CHECKING:
    from envs.domain import Domain


def compact_policy(domain: Domain) -> str:
    """The domain's own policy, then its tools."""
    return with_tools(domain.policy.rstrip() + "\n", domain)


def with_tools(rules: str, domain: Domain) -> str:
    """`rules`, and all of the agent's tools with their arguments in two lines."""
    return f"{rules}Read: {_tool_list(domain, write=False)}\nWrite: {_tool_list(domain, write=True)}"


def render_result(action: Action, result: ToolResult) -> str:
    """JSON as lines of names and values; errors and plain strings as they are.

    What is null or empty is left out, `true` and `false` become yes and no. A list gives a line for each member, an object a
    line for its plain values and one for each of the others.
    """
    value = parsed(result)
    if isinstance(value, dict):
        inner = {name: member for name, member in value.items() if isinstance(member, dict | list)}
        lines = [_words({name: member for name, member in value.items() if name not in inner})]
        lines += [f"{name}: {words}" for name, member in inner.items() if (words := _words(member))]
    elif isinstance(value, list) and any(isinstance(member, dict | list) for member in value):
        lines = [_words(member) for member in value]
    else:
        return result.content
    return "\n".join(line for line in lines if line) or result.content


def parsed(result: ToolResult) -> Any:
    """The JSON value of a tool's answer; None where there is none to shorten: an error, or plain text."""
    if result.error:
        return None
    try:
        return json.loads(result.content)
    except ValueError:
        return None


def _words(value: Any) -> str:
    """A JSON value in one line; `;` stands between things that have parts, `,` or a space between plain ones."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        members = [f"{name} {words}" for name, member in value.items() if (words := _words(member))]
        return ("; " if any(isinstance(member, dict) for member in value.values()) else ", ").join(members)
    if isinstance(value, list):
        between = "; " if any(isinstance(member, dict | list) for member in value) else " "
        return between.join(words for member in value if (words := _words(member)))
    return str(value)


@lru_cache(maxsize=16)  # every episode's prompt has the same two
def _tool_list(domain: Domain, write: bool) -> str:
    functions = [s["function"] for s in domain.tool_schemas if (s["function"]["name"] in domain.write_tools) is write]
    return ", ".join(map(_signature, functions))


def _signature(function: Mapping[str, Any]) -> str:
    arguments = [f"{name}{_form(schema)}" for name, schema in function["parameters"]["properties"].items()]
    return f"{function['name']}({', '.join(arguments)})"


def _form(schema: Mapping[str, Any]) -> str:
    """What a name alone does not say: `[{flight_number, date}]`, `=yes|no`."""
    if "enum" in schema:
        return f"={'|'.join(map(str, schema['enum']))}"
    if schema.get("type") == "array":
        return f"[{inner}]" if (inner := _form(schema["items"])) else ""
    members = schema.get("properties") or {}
    return f"{{{', '.join(f'{name}{_form(member)}' for name, member in members.items())}}}" if members else ""
