"""What a tool-call parser is: the way from a model's text to an `AgentTurn`, and back.

    class ShoutParser(Parser):
        name = "shout"

        def parse(self, text: str) -> AgentTurn: ...          # never raises
        def format_calls(self, actions: Sequence[Action]) -> str: ...

    PARSERS["shout"] = ShoutParser

A well-formed message is read as vLLM's parser of the same name reads it, so that what is learnt here works when served.
Damage with one plain meaning is repaired beyond that: what `read_json` and `read_call` name, and control tokens, which go. A
server with vLLM's parser takes such a message for text or hands its damage on; no metric counts them. A call that is not closed,
or holds what JSON cannot write, is refused where vLLM takes it.
What looks like a call and is not one becomes a `parse_failure`, a sentence that tells the model what to mend. All else is text.
`DEBUG_PARSER=1` prints to stderr which parser took or refused a message, and why (`debug`).
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from envs.types import Action, AgentTurn


class Parser(Protocol):
    """Reads and writes one family's tool calls."""

    name: str

    def parse(self, text: str) -> AgentTurn:
        """What the policy did: it spoke (`content`), it called (`actions`), or neither (`parse_failure`). Never raises."""
        ...

    def format_calls(self, actions: Sequence[Action]) -> str:
        """The text of these calls in one message, as the model should write it."""
        ...

    def format_call(self, action: Action) -> str:
        """The text of one call."""
        return self.format_calls([action])


class CallError(ValueError):
    """A call that cannot be read; the message is for the model."""


#: Control tokens that decoding may leave in the text. `<|python_tag|>` and harmony's tokens mean something to their parsers.
_CONTROL = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|eom_id|begin_of_text|end_of_text|start_header_id|end_header_id|end|return|call"
    r"|fim_(?:prefix|middle|suffix|pad)|finetune_right_pad_id|reserved_special_token_\d+|pad)\|>"
    r"|<｜(?:begin▁of▁sentence|end▁of▁sentence)｜>"
)
_HEADER = re.compile(r"\A\s*(?:<\|im_start\|>|<\|start_header_id\|>)assistant(?:<\|end_header_id\|>)?\s*")
_EDGES = ("<s>", "</s>", "<pad>", "<unk>")
_BARE_CALL = re.compile(r"""(?:```\w*)?[\[{\s]*["'](?:name|tool_calls|function)["']\s*:""")
_FENCE = re.compile(r"```(?:json|python|tool_call)?")
_SHOWN = 200  # characters of a message in a line of DEBUG_PARSER


def strip_control(text: str) -> str:
    """The text without control tokens, role headers and outer white space."""
    text = _CONTROL.sub("", _HEADER.sub("", text)).strip()
    while (token := next((token for token in _EDGES if text.startswith(token) or text.endswith(token)), None)) is not None:
        text = text.removeprefix(token).removesuffix(token).strip()
    return text


def read_json(text: str) -> Any:
    """The JSON value that `text` is, with the repairs that do not change its meaning.

    Those are: a code fence around it, raw line breaks inside strings, and Python's way of writing it (single quotes, True,
    None, trailing commas). Raises CallError with the place of the first fault.
    """
    body = _unfence(text.strip())
    try:
        value = json.loads(body, strict=False, parse_constant=_refuse_constant)
    except RecursionError:
        raise CallError("the JSON is nested too deeply") from None
    except ValueError as error:
        value = _read_python(body)
        if value is None:
            where = f", character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise CallError(f"not valid JSON ({reason}{where})") from None
    return value


def read_call(value: Any) -> Action:
    """The call in `{"name": …, "arguments": {…}}`.

    `parameters` may stand for `arguments`, which may be JSON in a string, an empty string or null; spaces around the name go.
    """
    if not isinstance(value, dict):
        raise CallError("a call must be one JSON object")
    name = value.get("name")
    if not isinstance(name, str) or not name.strip():
        raise CallError('"name" is missing')
    if "arguments" not in value and "parameters" not in value:
        raise CallError('"arguments" is missing (write {} for none)')
    arguments = value["arguments"] if "arguments" in value else value["parameters"]
    if isinstance(arguments, str):
        arguments = read_json(arguments) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise CallError('"arguments" must be a JSON object')
    try:
        json.dumps([name, arguments], ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise CallError("the arguments hold a value that JSON cannot write") from None
    return Action(name.strip(), arguments)


def looks_like_call(text: str) -> bool:
    """Whether the text begins as a JSON call that stands outside its family's markers."""
    return _BARE_CALL.match(text) is not None


def call_json(action: Action, key: str = "arguments") -> str:
    """`{"name": …, "arguments": {…}}` on one line."""
    return json.dumps({"name": action.name, key: dict(action.arguments)}, ensure_ascii=False)


def said(parser: str, text: str) -> AgentTurn:
    """A text turn; an empty one is a failure, since nobody can answer it."""
    if not text:
        return refused(parser, "the message is empty", text)
    debug(parser, "text", text)
    return AgentTurn(content=_writable(text))


def called(parser: str, actions: Sequence[Action], content: str, text: str) -> AgentTurn:
    """A turn with calls, and the words before them."""
    debug(parser, f"{len(actions)} call(s)", text)
    return AgentTurn(content=_writable(content) or None, actions=tuple(actions))


def refused(parser: str, reason: str, text: str, hint: str = "") -> AgentTurn:
    """A failure: the text is kept as content, the reason is a sentence for the model."""
    debug(parser, f"refused: {reason}", text)
    sentence = f"{reason[:1].upper()}{reason[1:]}."
    return AgentTurn(content=_writable(text) or None, parse_failure=f"{sentence} {hint}" if hint else sentence)


def debugging() -> bool:
    """Whether `DEBUG_PARSER` is set."""
    return os.environ.get("DEBUG_PARSER", "0") not in ("", "0")


def debug(parser: str, verdict: str, text: str) -> None:
    """One line on stderr when `DEBUG_PARSER` is set: who, the verdict, and the message, shortened and escaped.

    The message is a model's: a line break or a terminal's control sequence in it, or in a name that the verdict quotes, is
    written as its escape.
    """
    if debugging():
        shown = f"{text[:_SHOWN]!r}" + (f" … {len(text)} characters" if len(text) > _SHOWN else "")
        print(f"[parser {parser}] {repr(verdict[:_SHOWN])[1:-1]} | {shown}", file=sys.stderr)


def _writable(text: str) -> str:
    """The text with half characters (lone surrogates, from JSON escapes) replaced, so that it can be written to a file."""
    return text.encode("utf-8", "replace").decode()


def _unfence(text: str) -> str:
    opening = _FENCE.match(text)
    if opening is None or not text.endswith("```") or opening.end() > len(text) - 3:
        return text
    return text[opening.end() : -3].strip()


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON value")


def _read_python(text: str) -> Any:
    """The dict or list that a Python literal writes, in JSON's types; None when it is neither.

    JSON's `\\/` is a slash and Python's is two characters: such a text is not guessed at.
    """
    if not text.startswith(("{", "[")) or len(text) > 20_000 or r"\/" in text:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python comments on odd escapes in the model's text
            value = ast.literal_eval(text)
        return json.loads(json.dumps(value, allow_nan=False)) if isinstance(value, dict | list) else None
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
