"""Is a call well formed? Checks a tool call against the tool's JSON schema (the OpenAI function format)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from envs.types import Action

if TYPE_CHECKING:
    from envs.env import Env


def functions(tool_schemas: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Tool name -> its `parameters` schema."""
    return {schema["function"]["name"]: schema["function"].get("parameters") or {} for schema in tool_schemas}


def agent_tools(env: Env) -> dict[str, Mapping[str, Any]]:
    """The tools that the agent of this environment has, as `functions` gives them."""
    return functions(env.domain.solo_tool_schemas if env.solo else env.domain.tool_schemas)


def agent_writes(env: Env) -> frozenset[str]:
    """Those of them that change a database."""
    return env.domain.write_tools | env.domain.user_write_tools if env.solo else env.domain.write_tools


def missing_arguments(action: Action, parameters: Mapping[str, Any]) -> list[str]:
    """Required arguments that the call does not give."""
    return [name for name in parameters.get("required", ()) if name not in action.arguments]


def is_well_formed(action: Action, tools: Mapping[str, Mapping[str, Any]]) -> bool:
    """A known tool, every required argument, no unknown argument, the right JSON types."""
    parameters = tools.get(action.name)
    if parameters is None or missing_arguments(action, parameters):
        return False
    properties: Mapping[str, Any] = parameters.get("properties", {})
    definitions: Mapping[str, Any] = parameters.get("$defs", {})
    return all(name in properties and conforms(value, properties[name], definitions) for name, value in action.arguments.items())


def conforms(value: Any, schema: Mapping[str, Any], definitions: Mapping[str, Any] | None = None) -> bool:
    """Whether a value fits the part of JSON schema that tool signatures produce; keywords beyond that are not checked."""
    definitions = definitions or {}
    if "$ref" in schema:
        schema = definitions.get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
    if "anyOf" in schema:
        return any(conforms(value, option, definitions) for option in schema["anyOf"])
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    kinds = schema.get("type")
    if kinds is None:
        return True
    return any(_is_a(value, kind, schema, definitions) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _is_a(value: Any, kind: str, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
        case "number":
            # An int is finite, though it may be too large for a float.
            return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)))
        case "array":
            return isinstance(value, list | tuple) and all(conforms(v, schema.get("items", {}), definitions) for v in value)
        case "object":
            properties = schema.get("properties", {})
            return (
                isinstance(value, Mapping)
                and all(name in value for name in schema.get("required", ()))
                and all(conforms(v, properties.get(k, {}), definitions) for k, v in value.items())
            )
    return False
