"""Parsers against a corpus of good and damaged messages, against fuzz, and against vLLM's own."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.errors import TaudojoError
from envs.types import Action
from rollouts.parsers import PARSERS, get_parser
from rollouts.worker import build_world


@dataclass(frozen=True)
class Failure:
    """A parse failure whose sentence holds these words."""

    words: str


Expected = str | list[tuple[str, dict[str, Any]]] | Failure
ORDER = ("get_order_details", {"order_id": "#W1"})
ORDER_JSON = '{"name": "get_order_details", "arguments": {"order_id": "#W1"}}'
ZIP = ("find_user_id_by_name_zip", {"first_name": "Zoë", "last_name": "O'Neil", "zip": "19122"})
ZIP_JSON = '{"name": "find_user_id_by_name_zip", "arguments": {"first_name": "Zoë", "last_name": "O\'Neil", "zip": "19122"}}'


def tags(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


HERMES: list[tuple[str, Expected]] = [
    (tags(ORDER_JSON), [ORDER]),
    (tags(ORDER_JSON) + "<|im_end|>", [ORDER]),
    ("<|im_start|>assistant\n" + tags(ORDER_JSON) + "<|im_end|>\n", [ORDER]),
    (f"<tool_call>{ORDER_JSON}</tool_call>", [ORDER]),
    (tags(ZIP_JSON), [ZIP]),
    ("Let me look.\n" + tags(ORDER_JSON), [ORDER]),
    (tags(ORDER_JSON) + "\nI am waiting.", [ORDER]),
    (tags(ORDER_JSON) + "\n" + tags(ZIP_JSON), [ORDER, ZIP]),
    (tags(ORDER_JSON) * 3, [ORDER, ORDER, ORDER]),
    (tags('{"name": "list_all_product_types", "arguments": {}}'), [("list_all_product_types", {})]),
    (tags('{"arguments": {"a": [1, 2.5, true, null, {"b": []}]}, "name": "f"}'), [("f", {"a": [1, 2.5, True, None, {"b": []}]})]),
    (
        tags('{"name": "say", "arguments": {"text": "braces } { in \\"strings\\" ]"}}'),
        [("say", {"text": 'braces } { in "strings" ]'})],
    ),
    (tags('{"name": "say", "arguments": {"text": "caf\\u00e9 😀"}}'), [("say", {"text": "café 😀"})]),
    (tags('{\n  "name": "f",\n  "arguments": {\n    "x": 1\n  }\n}'), [("f", {"x": 1})]),
    ("Your order #W1 is pending.", "Your order #W1 is pending."),
    ("  Hello!  <|im_end|>", "Hello!"),
    ("Is that {yes} or [no]?", "Is that {yes} or [no]?"),
    ("5 < 6 and <b>bold</b>", "5 < 6 and <b>bold</b>"),
    ("ここにあります。", "ここにあります。"),
]
HERMES_DAMAGED: list[tuple[str, Expected]] = [
    ("", Failure("empty")),
    ("<|im_end|>", Failure("empty")),
    (" \n\t ", Failure("empty")),
    ("<tool_call>", Failure("not closed")),
    ("<tool_call>\n" + ORDER_JSON, Failure("not closed")),
    ("<tool_call>\n" + ORDER_JSON[:30], Failure("not closed")),
    (tags(ORDER_JSON) + "\n<tool_call>\n" + ORDER_JSON[:20], Failure("not closed")),
    (tags(ORDER_JSON[:-1]), Failure("not valid JSON")),
    (tags(ORDER_JSON + "}"), Failure("not valid JSON")),
    (tags(ORDER_JSON[:30]), Failure("not valid JSON")),
    (tags(""), Failure("not valid JSON")),
    (tags("get_order_details(order_id='#W1')"), Failure("not valid JSON")),
    (tags(ORDER_JSON) + tags("{"), Failure("not valid JSON")),
    (tags('"get_order_details"'), Failure("JSON object")),
    (tags("[1, 2]"), Failure("JSON object")),
    (tags("null"), Failure("JSON object")),
    (tags('{"arguments": {}}'), Failure('"name" is missing')),
    (tags('{"name": "", "arguments": {}}'), Failure('"name" is missing')),
    (tags('{"name": 3, "arguments": {}}'), Failure('"name" is missing')),
    (tags('{"name": "f"}'), Failure('"arguments" is missing')),
    (tags('{"name": "f", "arguments": [1]}'), Failure("must be a JSON object")),
    (tags('{"name": "f", "arguments": {"x": NaN}}'), Failure("NaN")),
    (tags('{"name": "f", "arguments": {"x": 1e999}}'), Failure("JSON cannot write")),
    (tags('{"name": "f", "arguments": {"x": "\\ud83d"}}'), Failure("JSON cannot write")),
    (tags("[" * 100_000), Failure("not")),
    ("</tool_call>", Failure("without <tool_call>")),
    (ORDER_JSON + "\n</tool_call>", Failure("without <tool_call>")),
    (ORDER_JSON, Failure("must stand between")),
    ("```json\n" + ORDER_JSON + "\n```", Failure("must stand between")),
    ('{"name": "get_order_det', Failure("must stand between")),
]
#: What vLLM gives up on and we read, since the meaning is plain.
HERMES_REPAIRED: list[tuple[str, Expected]] = [
    (tags("{'name': 'f', 'arguments': {'x': True, 'y': None}}"), [("f", {"x": True, "y": None})]),
    (tags('{"name": "f", "arguments": {"x": 1,},}'), [("f", {"x": 1})]),
    (tags('{"name": "f", "arguments": {"x": "two\nlines"}}'), [("f", {"x": "two\nlines"})]),
    (tags('```json\n{"name": "f", "arguments": {}}\n```'), [("f", {})]),
    (tags('{"name": "f", "parameters": {"x": 1}}'), [("f", {"x": 1})]),
    (tags('{"name": "f", "arguments": "{\\"x\\": 1}"}'), [("f", {"x": 1})]),
    (tags('{"name": "f", "arguments": null}'), [("f", {})]),
]
QWEN3: list[tuple[str, Expected]] = [
    ("<think>\nhm\n</think>\n\n" + tags(ORDER_JSON), [ORDER]),
    ("<think>\n\n</think>\n\nHello!", "Hello!"),
    ("I think so.\n</think>\n\nHello!", "Hello!"),
    ("<think>use <tool_call>{}</tool_call>?</think>No.", "No."),
    (tags('{"name": "f", "arguments": {"x": "</think>"}}'), [("f", {"x": "</think>"})]),
    ("<think>\nand then", Failure("</think>")),
    ("<think>x</think>", Failure("empty")),
]
LLAMA: list[tuple[str, Expected]] = [
    ('{"name": "f", "parameters": {"x": {"y": "}"}}}', [("f", {"x": {"y": "}"}})]),
    ('<|python_tag|>{"name": "f", "parameters": {}}<|eom_id|>', [("f", {})]),
    ('{"name": "f", "parameters": {}}; {"name": "g", "arguments": {"a": 1}}<|eot_id|>', [("f", {}), ("g", {"a": 1})]),
    ('Sure: {"name": "f", "parameters": {"x": 1}}', [("f", {"x": 1})]),
    ("Hello!<|eot_id|>", "Hello!"),
    ("The set {a, b} is small.", "The set {a, b} is small."),
]
LLAMA_DAMAGED: list[tuple[str, Expected]] = [
    ('{"name": "f", "parameters": {"x": 1}', Failure("not valid JSON")),
    ('{"name": "f"}', Failure('"arguments" is missing')),
    ('{"name": "f", "parameters": {}}; {"name": ', Failure("follows the call f")),
    ("<|python_tag|>print(1)", Failure("JSON object after")),
    ("{{{{", Failure("not valid JSON")),
]
OPENAI: list[tuple[str, Expected]] = [
    ('{"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}', [("f", {"x": 1})]),
    (
        '{"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}]}',
        [("f", {"x": 1})],
    ),
    (
        '{"content": null, "tool_calls": [{"name": "f", "arguments": {}}, {"function": {"name": "g", "arguments": {}}}]}',
        [("f", {}), ("g", {})],
    ),
    ('{"role": "assistant", "content": "Hello!", "tool_calls": []}', "Hello!"),
    ("Hello!", "Hello!"),
    ('{"weather": "fine"}', '{"weather": "fine"}'),
    ('{"tool_calls": [{"function": {"name": "f"', Failure("not valid JSON")),
    ('{"tool_calls": {"f": 1}}', Failure("must be a list")),
    ('{"tool_calls": ["f"]}', Failure("JSON object")),
    ('{"content": ""}', Failure("empty")),
]
_ANALYSIS = "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant"
HARMONY: list[tuple[str, Expected]] = [
    (_ANALYSIS + ' to=functions.f<|channel|>commentary json<|message|>{"x": 1}<|call|>', [("f", {"x": 1})]),
    (_ANALYSIS + '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>', [("f", {"x": 1})]),
    (_ANALYSIS + "<|channel|>final<|message|>Hello!<|return|>", "Hello!"),
    ("<|channel|>final<|message|>Hello!", "Hello!"),
    (_ANALYSIS + '<|channel|>commentary to=functions.f<|message|>{"x": ', Failure("call of f")),
    ("<|channel|>analysis<|message|>Look it up.", Failure("no final answer")),
]
CORPUS = [
    *(("hermes", *case) for case in HERMES + HERMES_DAMAGED + HERMES_REPAIRED),
    *(("qwen3", *case) for case in HERMES + HERMES_DAMAGED + QWEN3),
    *(("llama3_json", *case) for case in LLAMA + LLAMA_DAMAGED),
    *(("openai", *case) for case in OPENAI),
    *(("harmony", *case) for case in HARMONY),
]


@pytest.mark.parametrize(("name", "text", "expected"), CORPUS, ids=[f"{case[0]}-{i}" for i, case in enumerate(CORPUS)])
def test_a_message_is_read_as_the_corpus_says(name: str, text: str, expected: Expected):
    turn = get_parser(name).parse(text)
    if isinstance(expected, Failure):
        assert turn.parse_failure is not None
        assert expected.words in turn.parse_failure
        assert turn.actions == ()
    elif isinstance(expected, str):
        assert (turn.content, turn.actions, turn.parse_failure) == (expected, (), None)
    else:
        assert turn.parse_failure is None
        assert [(action.name, action.arguments) for action in turn.actions] == expected


def test_words_before_a_call_are_kept_beside_it():
    assert get_parser("hermes").parse("Let me look.\n" + tags(ORDER_JSON)).content == "Let me look."


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
PLAIN = JSON.filter(
    lambda value: not any(mark in json.dumps(value, ensure_ascii=False) for mark in ("<|", "tool_call>", "think>"))
)
FRAGMENTS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>", "<|im_start|>", "<|python_tag|>", "<|message|>"),
        *(
            "<|channel|>",
            "<|call|>",
            "to=functions.f",
            "```json\n",
            "```",
            "{",
            "}",
            "[",
            "]",
            '"',
            "'",
            ":",
            ",",
            ";",
            "\\",
            "\\u",
        ),
        *(
            '"name"',
            '"arguments"',
            '"parameters"',
            '"tool_calls"',
            '"function"',
            "null",
            "NaN",
            "1e999",
            "\n",
            ORDER_JSON,
            "0x1",
            "b''",
        ),
    ]
)
SOUP = st.lists(FRAGMENTS | st.text(max_size=8), max_size=24).map("".join)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=SOUP | st.text())
def test_no_text_makes_a_parser_raise_and_what_it_says_can_be_written(name: str, text: str):
    turn = get_parser(name).parse(text)
    said = [turn.content is not None, bool(turn.actions), turn.parse_failure is not None]
    assert any(said)
    assert not (turn.actions and turn.parse_failure)
    json.dumps([turn.content, [action.to_json() for action in turn.actions], turn.parse_failure], allow_nan=False).encode()
    (turn.content or "").encode()


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arguments=st.dictionaries(st.text(), PLAIN, max_size=4), function=st.from_regex(r"\A[a-z][a-z_]{0,20}\Z"))
def test_what_a_parser_writes_it_reads_back(name: str, arguments: dict[str, Any], function: str):
    parser, action = get_parser(name), Action(function, arguments)
    if any(mark in json.dumps(arguments, ensure_ascii=False) for mark in ("<|", "tool_call>", "think>", "<｜")):
        return
    assert parser.parse(parser.format_call(action)).actions == (action,)


@pytest.mark.parametrize("name", ["hermes", "qwen3", "llama3_json", "openai"])
def test_several_calls_fit_in_one_message(name: str):
    parser, actions = get_parser(name), (Action(*ORDER), Action(*ZIP))
    assert parser.parse(parser.format_calls(actions)).actions == actions


def test_an_unknown_model_is_read_by_the_first_family_that_finds_a_call():
    auto = get_parser("auto")
    for name in ("hermes", "llama3_json", "openai", "harmony"):
        assert auto.parse(get_parser(name).format_call(Action(*ORDER))).actions == (Action(*ORDER),)
    assert auto.parse("Hello!").content == "Hello!"
    assert "not closed" in (auto.parse("<tool_call>\n{").parse_failure or "")


def test_an_unknown_parser_names_the_nearest():
    with pytest.raises(TaudojoError, match="did you mean hermes"):
        get_parser("hermess")
    with pytest.raises(TaudojoError, match="tokenizer"):
        get_parser("vllm:mistral")


def test_debug_parser_says_who_took_or_refused_a_message_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DEBUG_PARSER", "1")
    get_parser("hermes").parse(tags(ORDER_JSON))
    get_parser("hermes").parse(tags("{"))
    taken, refused = capsys.readouterr().err.strip().splitlines()
    assert "[parser hermes] 1 call(s)" in taken
    assert "refused" in refused
    assert "not valid JSON" in refused


def test_debug_parser_shortens_and_escapes_what_a_model_wrote(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DEBUG_PARSER", "1")
    get_parser("hermes").parse("\x1b[2J\n[parser hermes] forged \u202e" + "x" * 1000)
    get_parser("llama3_json").parse('{"name": "f\\n\\u001b[2J", "parameters": {}}; {')
    said, refused = capsys.readouterr().err.splitlines()
    assert all(line.isprintable() for line in (said, refused))
    assert len(said) < 400
    assert "characters" in said
    assert r"follows the call f\n" in refused


def test_debug_parser_says_whom_auto_believes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("DEBUG_PARSER", "1")
    get_parser("auto").parse('{"name": "f", "parameters": {}}')
    *asked, last = capsys.readouterr().err.splitlines()
    assert [line.split("]")[0] for line in asked] == ["[parser qwen3", "[parser openai", "[parser llama3_json"]
    assert last.startswith("[parser auto] believes llama3_json")


@pytest.mark.parametrize("value", ["", "0"])
def test_debug_parser_is_silent_when_off(value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("DEBUG_PARSER", value)
    get_parser("hermes").parse("Hello!")
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from training.models import ensure_model

    tokenizer = AutoTokenizer.from_pretrained(ensure_model("smollm2_135m"))
    tokenizer.add_tokens(["<|python_tag|>", "[TOOL_CALLS]"], special_tokens=True)
    return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("hermes", [text for text, _ in HERMES + HERMES_DAMAGED]),
        ("llama3_json", [text for text, _ in LLAMA + LLAMA_DAMAGED]),
    ],
)
def test_the_calls_found_are_those_that_vllm_finds(name: str, texts: list[str], tokenizer: Any):
    own, theirs = get_parser(name), get_parser(f"vllm:{name}", tokenizer)
    for text in texts:
        mine, reference = own.parse(text), theirs.parse(text)
        if mine.parse_failure and reference.actions:
            # Stricter on purpose: an unclosed tag, and numbers and half characters that JSON cannot write.
            assert any(words in mine.parse_failure for words in ("not closed", "NaN", "cannot write")), text
        else:
            assert mine.actions == reference.actions, text


@pytest.mark.slow
def test_a_family_of_vllm_is_read_through_the_same_interface(tokenizer: Any):
    mistral = get_parser("vllm:mistral", tokenizer)
    assert mistral.parse('[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]</s>').actions == (Action("f", {"x": 1}),)
    assert mistral.parse("Hello!").content == "Hello!"
    with pytest.raises(TaudojoError, match="no tool parser"):
        get_parser("vllm:nonsense", tokenizer)
    with pytest.raises(TaudojoError, match="harmony"):
        get_parser("vllm:gpt_oss", tokenizer)


FLIGHT_SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search flights.",
        "parameters": {
            "type": "object",
            "properties": {
                "seats": {"type": "integer"},
                "dates": {"type": "array", "items": {"type": "string"}},
                "zip": {"type": "string"},
            },
        },
    },
}


@pytest.mark.slow
def test_a_format_without_types_is_read_by_the_tools_schemas():
    from transformers import AutoTokenizer

    from training.models import ensure_model

    tokenizer = AutoTokenizer.from_pretrained(ensure_model("smollm2_135m"))
    tokenizer.add_tokens(["<tool_call>", "</tool_call>", "<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"])
    arguments = {"seats": "2", "dates": '["2024-05-20"]', "zip": "19122"}
    qwen = "\n".join(f"<parameter={name}>\n{value}\n</parameter>" for name, value in arguments.items())
    minimax = "\n".join(f'<parameter name="{name}">{value}</parameter>' for name, value in arguments.items())
    texts = {
        "qwen3_coder": f"<tool_call>\n<function=search>\n{qwen}\n</function>\n</tool_call>",
        "minimax_m2": f'<minimax:tool_call>\n<invoke name="search">\n{minimax}\n</invoke>\n</minimax:tool_call>',
    }
    for family, text in texts.items():
        turn = get_parser(f"vllm:{family}", tokenizer, [FLIGHT_SEARCH]).parse(text)
        assert turn.actions == (Action("search", {"seats": 2, "dates": ["2024-05-20"], "zip": "19122"}),), family
    assert get_parser("vllm:qwen3_coder", tokenizer).parse(texts["qwen3_coder"]).actions[0].arguments == arguments
    unknown = texts["minimax_m2"].replace("search", "no_such_tool")
    turn = get_parser("vllm:minimax_m2", tokenizer, [FLIGHT_SEARCH]).parse(unknown)
    assert turn.parse_failure == "The tool call could not be read." and turn.content == unknown


@pytest.mark.parametrize("user", ["scripted", "solo"])
def test_vllm_s_parser_is_given_the_schemas_of_the_tools_that_the_policy_has(
    world_config: Any, monkeypatch: pytest.MonkeyPatch, user: str
):
    given: list[Any] = []
    monkeypatch.setattr("rollouts.parsers.vllm.VllmParser", lambda *arguments: given.append(arguments) or get_parser("hermes"))
    config = replace(world_config, domain="telecom", style="official", parser="vllm:qwen3_coder", user=user, user_settings={})
    world = build_world(config)
    ((family, tokenizer, tools),) = given
    assert family == "qwen3_coder" and tokenizer is world.chat.tokenizer
    assert tools == (world.domain.solo_tool_schemas if user == "solo" else world.domain.tool_schemas)
