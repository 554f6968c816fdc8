"""Every parser against `parser_corpus.jsonl`, whose expectations were written from the formats' definitions, and against fuzz.

A line: {"parser", "kind", "text", "expect": {"actions", "content", "failure"}, "why"}. Its `kind`: `well_formed` is what the
family writes when all goes well; `repaired` is damaged, with a plain meaning, and read, by us alone; `damaged` is not guessed at.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envs.types import AgentTurn
from rollouts.parsers import PARSERS, get_parser
from rollouts.parsers.base import Parser

LINES = [json.loads(line) for line in (Path(__file__).parent / "parser_corpus.jsonl").read_text(encoding="utf-8").splitlines()]
SEED = 20261121
#: What the fuzz inserts into messages of the corpus.
SHARDS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "<|im_end|>",
        "<|im_start|>assistant",
        "<|python_tag|>",
        "<|eot_id|>",
    ),
    *("<|channel|>", "<|message|>", "<|call|>", "<|end|>", "<|start|>", "to=functions.f", "<|constrain|>", "<s>", "</s>"),
    *('{"name": "f", "arguments": {}}', '"name"', '"arguments"', '"tool_calls"', '"function"', "'name':", "null", "None", "NaN"),
    *(
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        '"',
        "'",
        ":",
        ",",
        ";",
        "\\",
        "\\u",
        "\\ud83d",
        "\\/",
        "```json\n",
        "```",
        "\n",
        "\t",
        " ",
        "\0",
    ),
    *(
        "1e999",
        "0x1",
        "b''",
        "1j",
        "9" * 5000,
        "[" * 2000,
        '{"a":' * 400,
        "-" * 3000,
        "\ud83d",
        "\ufeff",
        "é",
        "😀",
        "<｜",
        "\x1b[31m",
    ),
]


def as_json(turn: AgentTurn) -> dict[str, Any]:
    actions = [{"name": action.name, "arguments": action.arguments} for action in turn.actions]
    return {"actions": actions, "content": turn.content, "failure": turn.parse_failure is not None}


def fuzzed(count: int) -> Iterator[str]:
    """Messages of the corpus cut, joined, with shards inserted and characters swapped; always the same ones."""
    rng = random.Random(SEED)
    texts = [line["text"] for line in LINES]
    for _ in range(count):
        text = rng.choice(texts)
        for _ in range(rng.randint(1, 4)):
            at, kind = rng.randint(0, len(text)), rng.random()
            if kind < 0.5:
                text = text[:at] + rng.choice(SHARDS) + text[at:]
            elif kind < 0.7:
                text = text[:at] + text[at + rng.randint(1, 12) :]
            elif kind < 0.8:
                text = text[:at]
            elif kind < 0.9:
                text = text[:at] + rng.choice(texts)
            else:
                text = text[:at] + chr(rng.choice([rng.randint(0, 127), rng.randint(0, 0x10FFFF)])) + text[at + 1 :]
        yield text


def test_the_corpus_is_large_and_no_message_stands_in_it_twice():
    families = {name: sum(line["parser"] == name for line in LINES) for name in PARSERS}
    assert len(LINES) >= 300
    assert all(families[name] >= 50 for name in ("hermes", "qwen3", "llama3_json", "openai", "harmony")), families
    assert len({(line["parser"], line["text"]) for line in LINES}) == len(LINES)
    assert {line["kind"] for line in LINES} == {"well_formed", "repaired", "damaged"}


@pytest.mark.parametrize("name", PARSERS)
def test_every_message_of_the_corpus_is_read_as_its_format_says(name: str):
    parser = get_parser(name)
    cases = [line for line in LINES if line["parser"] == name]
    read = [as_json(parser.parse(line["text"])) for line in cases]
    wrong = [
        f"{line['why']}: {line['text']!r}\n  expected {line['expect']}\n  got      {got}"
        for line, got in zip(cases, read, strict=True)
        if got != line["expect"]
    ]
    assert not wrong, "\n".join(wrong)


def check_fuzz(parser: Parser, text: str) -> None:
    turn = parser.parse(text)
    assert turn.actions or turn.content is not None or turn.parse_failure, (parser.name, text)
    assert not (turn.actions and turn.parse_failure), (parser.name, text)
    json.dumps(as_json(turn), ensure_ascii=False, allow_nan=False).encode()


def test_no_fuzzed_message_makes_a_parser_raise():
    parsers = [get_parser(name) for name in PARSERS]
    for text in fuzzed(20_000):
        for parser in parsers:
            check_fuzz(parser, text)


@pytest.mark.slow
def test_no_fuzzed_message_of_a_million_makes_a_parser_raise():
    """The parsers take turns: all of them reading all of it took six minutes."""
    parsers = [get_parser(name) for name in PARSERS]
    for text, parser in zip(fuzzed(1_000_000), itertools.cycle(parsers), strict=False):
        check_fuzz(parser, text)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    "text",
    [
        "```" + "\n" * 30_000 + "x",
        "<tool_call>" * 5_000 + "</tool_call>",
        "<think>" + "<tool_call>{" * 5_000,
        "<s>" * 5_000 + "x",
        "x" + " " * 30_000 + '{"name": "f", "arguments": {}}',
        "<|channel|>" * 5_000 + "<|message|>",
        "{" * 30_000,
        "<tool_call>" + '{"name": "f", "arguments": ' + "[" * 9_000 + "}</tool_call>",
    ],
    ids=["fence", "tags", "thinking", "edges", "spaces", "channels", "braces", "nesting"],
)
def test_a_long_senseless_message_is_read_without_backtracking(name: str, text: str):
    turn = get_parser(name).parse(text)  # a pattern that backtracks would take minutes here
    assert turn.parse_failure or turn.actions or turn.content


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from training.models import ensure_model

    tokenizer = AutoTokenizer.from_pretrained(ensure_model("smollm2_135m"))
    tokenizer.add_tokens(["<|python_tag|>"], special_tokens=True)
    return tokenizer


#: Our parser, and the one of vLLM's that it is compared with.
NAMES = [("hermes", "hermes"), ("qwen3", "hermes"), ("llama3_json", "llama3_json")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "theirs"), NAMES)
def test_well_formed_messages_of_the_corpus_are_read_as_vllm_reads_them(name: str, theirs: str, tokenizer: Any):
    """For Qwen3 a server strips the thinking first, so only its messages without thinking are compared."""
    own, reference = get_parser(name), get_parser(f"vllm:{theirs}", tokenizer)
    cases = [line["text"] for line in LINES if line["parser"] == name and line["kind"] == "well_formed"]
    cases = [text for text in cases if name != "qwen3" or "think>" not in text]
    assert cases
    for text in cases:
        assert own.parse(text).actions == reference.parse(text).actions, text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "theirs"), NAMES)
def test_no_repaired_message_of_the_corpus_is_read_so_by_vllm(name: str, theirs: str, tokenizer: Any):
    """Asked is vLLM's class itself: `VllmParser` reads what it hands out with `read_call`, which repairs, too."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    request = ChatCompletionRequest.model_validate({"messages": [], "model": ""})
    cases = [line for line in LINES if line["parser"] == name and line["kind"] == "repaired"]
    assert cases
    for line in cases:
        found = ToolParserManager.get_tool_parser(theirs)(tokenizer).extract_tool_calls(line["text"], request)
        served = [{"name": c.function.name, "arguments": json.loads(c.function.arguments)} for c in found.tool_calls]
        assert line["expect"]["actions"] and served != line["expect"]["actions"], line["why"]
