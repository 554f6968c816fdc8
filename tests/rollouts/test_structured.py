"""Structured decoding: the grammar lets through what the parser reads, and nothing that it would refuse."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from envs.errors import TaudojoError
from envs.types import Action
from rollouts.engines.base import SamplingParams
from rollouts.engines.vllm import VLLMEngine
from rollouts.parsers import get_parser
from rollouts.structured import tool_call_grammar

CALL = Action("get_order_details", {"order_id": "#W2611340"})


@pytest.fixture(scope="module")
def allowed(world: Any) -> Any:
    """Whether a text, from its first character to the end of the turn, can be sampled with a parser's grammar."""
    import xgrammar

    tokenizer = world.chat.tokenizer
    vocabulary = xgrammar.TokenizerInfo.from_huggingface(tokenizer, stop_token_ids=[tokenizer.eos_token_id])
    compiler = xgrammar.GrammarCompiler(vocabulary)
    compiled = {
        name: compiler.compile_structural_tag(tool_call_grammar(name, world.domain.tool_schemas))
        for name in ("hermes", "qwen3", "llama3_json")
    }

    def allowed(parser: str, text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(compiled[parser])
        return all(matcher.accept_token(token) for token in [*tokenizer(text).input_ids, tokenizer.eos_token_id])

    return allowed


@pytest.mark.parametrize("parser", ["hermes", "qwen3", "llama3_json"])
def test_what_the_expert_writes_can_be_sampled(allowed: Any, parser: str):
    format_calls = get_parser(parser).format_calls
    assert allowed(parser, format_calls([CALL]))
    assert allowed(parser, format_calls([CALL, Action("get_user_details", {"user_id": "yusuf_rossi_9620"})]))
    assert allowed(parser, "Could you give me your order number?")


@pytest.mark.parametrize(
    "damaged",
    [
        '<tool_call>\n{"name": "get_ordr", "arguments": {"order_id": "#W1"}}\n</tool_call>',
        '<tool_call>\n{"name": "get_order_details", "arguments": {"order": "#W1"}}\n</tool_call>',
        '<tool_call>\n{"name": "get_order_details", "arguments": {"order_id": 1}}\n</tool_call>',
        '<tool_call>\n{"name": "get_order_details", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "get_order_details", "arguments": {"order_id": "#W1"}',
        "<tool_call>\n{'name': 'get_order_details'}\n</tool_call>",
        "<tool_call>get_order_details</tool_call>",
    ],
)
def test_a_malformed_call_cannot_be_sampled(allowed: Any, damaged: str):
    assert not allowed("hermes", damaged)


def test_a_format_without_a_grammar_is_refused():
    with pytest.raises(TaudojoError, match=r"formats hermes, llama3_json, qwen3, and model\.tool_parser is harmony"):
        tool_call_grammar("harmony", [])


def test_every_tool_has_a_tag(world: Any):
    grammar = json.loads(tool_call_grammar("hermes", world.domain.tool_schemas))
    assert len(grammar["format"]["tags"]) == len(world.domain.tool_schemas)


@pytest.mark.slow
def test_a_weak_model_that_is_led_astray_writes_only_calls_that_can_be_read(config: Any, world: Any, smollm_path: Any):
    bad = "Say: <tool_call>get_order_details(id=W1)</tool_call>\n"
    prompt = world.chat.tokenizer(bad * 6 + "Say:").input_ids
    grammar = tool_call_grammar("hermes", world.domain.tool_schemas)
    stop = tuple(world.chat.stop_token_ids)

    async def sampled() -> list[list[str]]:
        engine = VLLMEngine(replace(config.engine(str(smollm_path)), structured=True, seeded=False, max_model_len=1024))
        try:
            texts = []
            for params in (SamplingParams(120, 0.7, stop_token_ids=stop, grammar=g) for g in (None, grammar)):
                turns = await asyncio.gather(*(engine.generate(prompt, params) for _ in range(8)))
                texts.append([world.chat.decode(turn.token_ids) for turn in turns])
            return texts
        finally:
            await engine.close()

    free, guided = asyncio.run(sampled())
    read = get_parser("hermes").parse
    calls = [text[: text.rindex("</tool_call>") + len("</tool_call>")] for text in guided if "</tool_call>" in text]
    assert any(read(text).parse_failure for text in free)
    assert calls and all(read(text).actions for text in calls)
