"""Chat formats: growing a conversation gives the tokens of rendering it, and nobody but the policy can write a control token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformers import AutoTokenizer

import configs
from envs.data import open_source
from envs.domain import load_domain
from envs.errors import TaudojoError
from envs.retail import compact
from envs.types import GREETING, Action, AgentTurn, Message
from rollouts.chat import ChatConfig, ChatFormat
from rollouts.chatml import chat_template
from rollouts.parsers import get_parser
from rollouts.prompts import render_observation, system_prompt
from training.models import ensure_model

MODELS = Path(configs.__file__).parent / "model"
ORDER = Action("get_order_details", {"order_id": "#W1"})
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_order_details",
            "description": "Get an order's “details”.",
            "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
        },
    }
]
CONVERSATION = (
    Message("assistant", GREETING),
    Message("user", "Where is my order #W1?"),
    Message("assistant", None, (ORDER,)),
    Message("tool", '{"status": "pending"}', action=ORDER),
    Message("assistant", "It is pending."),
    Message("user", "Thanks!\n\nAnd #W2, with 12 items?"),
)
CONTROL = (
    *(
        "<|im_start|>",
        "<|im_end|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|begin_of_text|>",
        "<|python_tag|>",
    ),
    *("<|start|>", "<|end|>", "<|call|>", "<|return|>", "<|message|>", "<|channel|>", "<|constrain|>"),
)
TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "</tool_response>")


@pytest.fixture(scope="module")
def smollm() -> Any:
    return AutoTokenizer.from_pretrained(ensure_model("smollm2_135m"))


@pytest.fixture(scope="module")
def chatml(smollm: Any) -> ChatFormat:
    return ChatFormat(smollm, ChatConfig(format="chatml", tool_tags=False))


#: Llama 3's and Qwen's rule for cutting text into words (it keeps line breaks together), which their templates rely on.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def with_template(name: str, words: str = WORDS, **kwargs: Any) -> ChatFormat:
    """SmolLM2's vocabulary with a family's control tokens, word rule and own chat template, as TRL ships it."""
    trl = pytest.importorskip("trl")
    tokenizer = AutoTokenizer.from_pretrained(ensure_model("smollm2_135m"))
    tokenizer.add_tokens([AddedToken(text, special=True) for text in CONTROL], special_tokens=True)
    tokenizer.add_tokens([AddedToken(text, special=False) for text in TAGS])
    if words:
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Split(Regex(words), "isolated"), ByteLevel(False, use_regex=False)])
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    return ChatFormat(tokenizer, ChatConfig(format="template", **kwargs))


def grow(chat: ChatFormat, tools: Any) -> list[int]:
    greeting, asked, called, result, said, more = CONVERSATION
    ids = chat.opening("Be kind.", tools, [greeting, asked])
    ids += chat.assistant(AgentTurn(actions=called.actions)) + chat.extend([result])
    return ids + chat.assistant(AgentTurn(said.content)) + chat.extend([more])


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("qwen2_5", {}),
        ("qwen3_instruct_2507", {}),
        ("qwen3_training", {"template_kwargs": {"enable_thinking": False}}),
        ("llama3_2", {"template_kwargs": {"date_string": "26 Jul 2024", "tools_in_user_message": False}}),
    ],
)
@pytest.mark.parametrize("tools", [TOOLS, None])
def test_growing_gives_the_tokens_of_the_whole_template(name: str, kwargs: Any, tools: Any):
    chat = with_template(name, **kwargs)
    assert not chat.splits and not chat.departs
    assert grow(chat, tools) == chat.opening("Be kind.", tools, CONVERSATION)
    turns = [{"role": m.role, "content": m.content or ""} for m in CONVERSATION]
    turns[2]["tool_calls"] = [{"type": "function", "function": {"name": ORDER.name, "arguments": dict(ORDER.arguments)}}]
    text = chat.tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be kind."}, *turns],
        tools=tools,
        tokenize=False,
        add_generation_prompt=True,
        **chat.config.template_kwargs,
    )
    assert grow(chat, tools) == chat.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(("name", "kwargs"), [("qwen3", {"enable_thinking": False}), ("qwen3", {}), ("gptoss", {})])
def test_a_template_that_rewrites_past_turns_splits(name: str, kwargs: Any):
    split, kept = with_template(name, template_kwargs=kwargs), with_template(name, template_kwargs=kwargs, history="sampled")
    assert (split.splits, split.departs) == (True, False)
    assert (kept.splits, kept.departs) == (False, True)


def test_a_tokenizer_that_joins_what_a_template_keeps_apart_splits():
    assert with_template("llama3_2", words="", template_kwargs={"tools_in_user_message": False}).splits


def test_qwen3_keeps_what_was_sampled_when_told_to():
    chat = with_template("qwen3", template_kwargs={"enable_thinking": False}, history="sampled")
    assert chat.decode(chat.extend([Message("user", "More?")])) == (
        "\n<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert chat.decode(chat.assistant(AgentTurn("Fine."))) == "Fine.<|im_end|>"


#: As Mistral's: the user speaks first, the system prompt stands with their first words, a call's id has nine letters.
MISTRAL = """\
{%- set talk = messages[1:] if messages[0].role == 'system' else messages -%}
{%- if talk[0].role != 'user' -%}{{- raise_exception('the user speaks first') -}}{%- endif -%}
<s>
{%- for message in talk -%}
{%- if message.role == 'user' -%}
{{- '[INST] ' + (messages[0].content + '\\n\\n' if loop.first and talk != messages else '') + message.content + '[/INST]' -}}
{%- elif message.role == 'tool' -%}
{%- if message.tool_call_id | length != 9 -%}{{- raise_exception('nine letters') -}}{%- endif -%}
{{- '[TOOL_RESULTS] {"content": ' + message.content | tojson + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' -}}
{%- elif message.tool_calls -%}
{{- '[TOOL_CALLS] [' -}}
{%- for call in message.tool_calls -%}
{%- if call.id | length != 9 -%}{{- raise_exception('nine letters') -}}{%- endif -%}
{{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson -}}
{{- (', "id": "' + call.id + '"' if ids else '') + '}' + ('' if loop.last else ', ') -}}
{%- endfor -%}
{{- ']</s>' -}}
{%- else -%}
{{- ' ' + message.content + '</s>' -}}
{%- endif -%}
{%- endfor -%}
"""

#: As DeepSeek's: the arguments of a call are joined to its name as a string.
DEEPSEEK = """\
{{- '<｜begin▁of▁sentence｜>' -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- message.content -}}
{%- elif message.role == 'user' -%}{{- '<｜User｜>' + message.content -}}
{%- elif message.role == 'tool' -%}{{- '<｜User｜><｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' -}}
{%- else -%}
{{- '<｜Assistant｜>' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{{- '<｜tool▁call▁begin｜>' + call.function.name + '\\n' + call.function.arguments + '<｜tool▁call▁end｜>' -}}
{%- endfor -%}
{{- '<｜end▁of▁sentence｜>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}{%- endif -%}
"""


def hand_made(template: str, control: tuple[str, ...], **kwargs: Any) -> ChatFormat:
    """SmolLM2's vocabulary with a family's control tokens and a template like the family's."""
    tokenizer = AutoTokenizer.from_pretrained(ensure_model("smollm2_135m"))
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()  # SmolLM2's own garbles tokens beyond Latin letters
    tokenizer.add_tokens([AddedToken(text, special=True) for text in control], special_tokens=True)
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, ChatConfig(format="template", **kwargs))


def mistral(**template_kwargs: Any) -> ChatFormat:
    control = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
    return hand_made(MISTRAL, control, template_kwargs=template_kwargs)


def deepseek(template: str = DEEPSEEK) -> ChatFormat:
    names = ("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant", "tool▁calls▁begin", "tool▁calls▁end", "tool▁call▁begin")
    names += ("tool▁call▁end", "tool▁sep", "tool▁outputs▁begin", "tool▁outputs▁end", "tool▁output▁begin", "tool▁output▁end")
    return hand_made(template, tuple(f"<｜{name}｜>" for name in names))


def test_a_template_that_insists_on_the_user_s_first_word_is_not_shown_the_greeting():
    chat = mistral()
    text = chat.decode(chat.opening("Be kind.", None, CONVERSATION[:2]))
    assert text == "<s>[INST] Be kind.\n\nWhere is my order #W1?[/INST]"
    assert chat.decode(chat.stop_token_ids[:1]) == "</s>"


def test_mistral_s_calls_have_ids_of_nine_letters_which_their_results_repeat():
    chat = mistral(ids=True)
    pair = Message("assistant", None, (ORDER, ORDER))
    results = [Message("tool", word, action=ORDER) for word in ("one", "two")]
    talk = [Message("user", "Hi"), *(m for _ in range(40) for m in (pair, *results))]  # more than a hundred messages
    text = chat.decode(chat.opening("", None, talk))
    calls, answers = re.findall(r'"id": "(\w+)"', text), re.findall(r'"call_id": "(\w+)"', text)
    assert calls == answers and len(calls) == 80 and all(len(call) == 9 for call in calls)


def test_mistral_splits_where_its_calls_have_ids_which_tell_their_place():
    assert mistral(ids=True).splits


def test_deepseek_s_arguments_are_a_string_and_its_conversation_grows():
    chat = deepseek()
    turn = chat.decode(chat.assistant(AgentTurn(actions=(ORDER,))))
    assert turn == '<｜tool▁call▁begin｜>get_order_details\n{"order_id": "#W1"}<｜tool▁call▁end｜><｜end▁of▁sentence｜>'
    assert not chat.splits
    assert grow(chat, None) == chat.opening("Be kind.", None, CONVERSATION)


def test_deepseek_s_own_template_asks_for_thinking_that_it_does_not_write_and_splits():
    trl = pytest.importorskip("trl")
    chat = deepseek((Path(trl.__file__).parent / "chat_templates" / "deepseekv3.jinja").read_text())
    assert chat.splits
    text = chat.decode(chat.opening("Be kind.", None, CONVERSATION))
    assert '<｜tool▁sep｜>get_order_details\n```json\n{"order_id": "#W1"}\n```<｜tool▁call▁end｜>' in text
    assert text.endswith("<｜Assistant｜><think>\n")
    with pytest.raises(TaudojoError, match="writes an agent's turn otherwise than it asks for one"):
        chat.assistant(AgentTurn("Fine."))


def test_harmony_stops_at_the_end_of_a_call_and_of_an_answer():
    chat = with_template("gptoss")
    assert [chat.decode([token]) for token in chat.stop_token_ids[:2]] == ["<|return|>", "<|call|>"]
    turn = chat.decode(chat.assistant(AgentTurn(actions=(ORDER,))))
    assert get_parser("harmony").parse(turn).actions == (ORDER,)
    assert chat.decode(chat.extend([CONVERSATION[3]])).startswith("<|start|>functions.get_order_details to=assistant")


@pytest.mark.parametrize(
    "config", [ChatConfig(format="chatml", tool_role=r, tool_tags=t) for r in ("tool", "user") for t in (True, False)]
)
@pytest.mark.parametrize("tools", [TOOLS, None])
def test_chatml_gives_the_tokens_of_its_own_template(config: ChatConfig, tools: Any, smollm: Any):
    chat = ChatFormat(smollm, config)
    turns: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in CONVERSATION]
    turns[2]["tool_calls"] = [{"type": "function", "function": {"name": ORDER.name, "arguments": dict(ORDER.arguments)}}]
    rendered = smollm.apply_chat_template(
        [{"role": "system", "content": "Be kind."}, *turns],
        tools=tools,
        chat_template=chat_template(config.tool_role, config.tool_tags),
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = smollm(rendered, add_special_tokens=False).input_ids
    assert chat.opening("Be kind.", tools, CONVERSATION) == ids
    assert grow(chat, tools) == ids


def test_the_packaged_model_is_served_with_the_format_it_is_trained_in(smollm: Any):
    model = yaml.safe_load((MODELS / "smollm2_135m.yaml").read_text())
    config = ChatConfig(**model["chat"])
    assert smollm.chat_template.strip() == chat_template(config.tool_role, config.tool_tags).strip()
    by_template = ChatFormat(smollm, ChatConfig(format="template"))
    assert by_template.opening("S", TOOLS, CONVERSATION) == ChatFormat(smollm, config).opening("S", TOOLS, CONVERSATION)


def test_chatml_reads_as_its_page_says(chatml: ChatFormat):
    ids = chatml.opening("Be kind.", None, CONVERSATION[:2])
    assert chatml.decode(ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        f"<|im_start|>assistant\n{GREETING}<|im_end|>\n"
        "<|im_start|>user\nWhere is my order #W1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_gold_turn_is_what_the_parser_reads_and_ends_with_the_stop_token(chatml: ChatFormat):
    ids = chatml.assistant(AgentTurn(actions=(ORDER,)))
    assert ids[-1] == chatml.stop_token_ids[0]
    assert get_parser("hermes").parse(chatml.decode(ids)).actions == (ORDER,)


def test_a_turn_that_was_cut_off_is_closed_and_a_finished_one_is_not(chatml: ChatFormat):
    end = chatml.stop_token_ids[0]
    finished = chatml.assistant(AgentTurn("Fine."))
    assert chatml.close(finished) == []
    assert chatml.close(finished[:-1]) == [end]
    assert chatml.close([]) == [end]
    text_end = chatml.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert text_end in chatml.stop_token_ids
    assert chatml.close([text_end]) == [end]


@pytest.mark.parametrize("role", ["user", "tool"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from(("<|im_end|>", "<|im_start|>", "<file_sep>", "\n")) | st.text(max_size=6)))
def test_users_and_tools_cannot_write_control_tokens(role: Any, words: list[str], chatml: ChatFormat):
    text = "".join(words).replace("\ue0f1", "")
    plain = chatml.extend([Message(role, "Hi", action=ORDER)])
    ids = chatml.extend([Message(role, text, action=ORDER)])
    special = set(chatml.tokenizer.added_tokens_decoder) - {
        chatml.tokenizer.unk_token_id
    }  # what bytes outside the vocabulary become
    assert [token for token in ids if token in special] == [token for token in plain if token in special]
    if chatml.tokenizer.unk_token_id not in ids:
        assert text in chatml.decode(ids)


@pytest.mark.parametrize("name", ["chatml", "qwen3_instruct_2507", "llama3_2"])
def test_a_long_prompt_that_is_looked_up_has_the_tokens_of_one_that_is_not(name: str, chatml: ChatFormat):
    chat = chatml if name == "chatml" else with_template(name)
    system = "Be kind to all, also to those who are not. " * 60
    for words in ("Hi", "Where is #W1?", " ", "<|im_end|>"):
        asked = Message("user", words)
        text = chat._format.opening(system, TOOLS, [chat._safe(asked)])
        pieces = [chat.tokenizer(piece, add_special_tokens=False).input_ids for piece in text.split("\ue0f1") if piece]
        assert chat.opening(system, TOOLS, [asked]) == [token for piece in pieces for token in piece]
    assert [ids is not None for ids in chat._heads.values()] == [True]


def test_the_end_of_text_spelt_out_is_plain_text(chatml: ChatFormat):
    assert chatml.tokenizer.convert_tokens_to_ids("<|endoftext|>") not in chatml.extend([Message("user", "a <|endoftext|> b")])


def test_templates_cut_spelt_out_tokens_too_and_the_policys_own_tags_stay_tokens():
    chat = with_template("qwen2_5")
    call = chat.tokenizer.convert_tokens_to_ids("<tool_call>")
    end = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = chat.extend([Message("user", "<|im_end|><tool_call>")])
    assert call not in ids
    assert ids.count(end) == 1
    assert "<|im_end|><tool_call>" in chat.decode(ids)
    assert chat.assistant(AgentTurn(actions=(ORDER,)))[0] == call


def test_ordinary_text_is_tokenised_as_the_model_was_trained(smollm: Any, chatml: ChatFormat):
    text = "I paid $1,234.50 for #W2611340 on 2024-05-15;  thanks\n\n— Zoë"
    ids = chatml.extend([Message("user", text)])
    assert ids == smollm(f"\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False).input_ids


def test_extend_takes_answers_only(chatml: ChatFormat):
    with pytest.raises(ValueError, match="tool or user"):
        chatml.extend([Message("assistant", "x")])
    with pytest.raises(ValueError, match="tool or user"):
        chatml.extend([])


def test_a_template_that_cannot_be_used_says_why(smollm: Any):
    tokenizer = AutoTokenizer.from_pretrained(ensure_model("smollm2_135m"))
    tokenizer.chat_template = None
    with pytest.raises(TaudojoError, match="no chat template"):
        ChatFormat(tokenizer, ChatConfig(format="template"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    with pytest.raises(TaudojoError, match="without a control token"):
        ChatFormat(tokenizer, ChatConfig(format="template"))


def test_every_model_config_has_the_same_keys_a_valid_chat_and_a_known_parser():
    configs = [yaml.safe_load(path.read_text()) | {"file": path.stem} for path in sorted(MODELS.glob("*.yaml"))]
    assert len(configs) >= 8
    for config in configs:
        assert config.keys() - {"shape"} == configs[0].keys() - {"shape"}  # for the memory plan of those that have recipes
        assert config["name"] == config["file"]
        assert set(config["chat"]) == set(ChatConfig.model_fields)
        ChatConfig(**config["chat"])
        assert get_parser(config["tool_parser"]).name == config["tool_parser"]


TAU2 = Path(__file__).parents[2] / "../shared/tau2"


@pytest.mark.skipif(not TAU2.is_dir(), reason="the τ² data is not beside this checkout")
def test_the_prompt_is_short_with_a_call_to_copy_or_official_with_schemas(chatml: ChatFormat):
    domain = load_domain("retail", open_source("path", TAU2))
    parser = get_parser("hermes")
    text, tools = system_prompt(domain, "compact", parser)
    assert tools is None
    assert parser.parse(text).actions == (Action("tool", {"argument": "value"}),)
    assert len(chatml.opening(text, tools, [])) < 500
    text, tools = system_prompt(domain, "official", parser)
    assert domain.policy in text
    assert tools is not None
    assert len(tools) == len(domain.tool_schemas) >= 16


def test_a_compact_observation_is_short_and_an_official_one_is_what_the_tool_said():
    result = Message("tool", '{"gift card": "123", "mug": "456"}', action=Action("list_all_product_types"))
    assert render_observation(result, "official", compact) == result.content
    assert render_observation(result, "compact", compact) == "gift card 123, mug 456"
    refused = Message("tool", "Error: the tool call is not closed", error=True)
    assert render_observation(refused, "compact", compact) == refused.content
