"""From words to token ids, so that a conversation only ever grows at its end.

    prompt = chat.opening(system, tools, messages)        # ends where the policy speaks
    sampled = engine.generate(prompt)
    prompt += sampled + chat.close(sampled) + chat.extend(tool_results)

What was sampled is never rendered again: the tokens trained on are the tokens sampled. Two formats: `chatml`, written here, and
`template`, any Hugging Face chat template, whose pieces are what rendering gains when a turn is added to a dummy conversation.
Where growing and rendering at once give different tokens (a template that drops past thinking, for one), `splits` is True: then
every policy turn starts from `opening` with the whole history, and the trajectory is split there. With `history: sampled` it
grows all the same; then `departs` is True, and every trajectory says so.

Text of users and tools is not trusted: a control token spelt out in it becomes the plain characters, never the token.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from envs.errors import TaudojoError
from envs.types import Action, AgentTurn, Message
from rollouts import chatml
from rollouts.parsers import Parser, get_parser

#: Cuts a control token that stands in untrusted text; a private-use character that no vocabulary merges and no user types.
_CUT = "\ue0f1"

#: Characters from which a system prompt is kept, and how many are.
_LONG, _HEADS = 1000, 64
#: How many shorter pieces are kept.
_PIECES = 2048


class ChatConfig(BaseModel):
    """`model.chat`: how a conversation is written for this model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["chatml", "template"] = "template"
    tool_role: Literal["tool", "user"] = "tool"  # chatml only: whose turn a tool result is
    tool_tags: bool = True  # chatml only: <tool_response> around a tool result
    template_file: str | None = None  # template only: a Jinja file instead of the tokenizer's own
    template_kwargs: dict[str, Any] = Field(default_factory=dict)  # template only: e.g. enable_thinking: false
    # Where a template would rewrite past turns (Qwen3 takes out empty thinking): `sampled` keeps them as they were sampled, so
    # the conversation grows; `rendered` obeys the template, so the trajectory splits.
    history: Literal["sampled", "rendered"] = "rendered"


class ChatFormat:
    """The token ids of every piece of a conversation. Thread-safe after construction; of state only what was seen lately.

    stop_token_ids: where sampling stops. splits, departs: whether the conversation cannot grow, or grows against the template
    (see above).
    """

    stop_token_ids: list[int]
    splits: bool
    departs: bool

    def __init__(self, tokenizer: Any, config: ChatConfig, parser: Parser | None = None) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self._parser = parser or get_parser("hermes")
        added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
        self._control = _alternatives(text for text, special in added.items() if special)
        self._added = _alternatives(added)
        backend = getattr(tokenizer, "backend_tokenizer", None)  # a fast tokenizer's own, without what is done around it
        if backend is not None:
            backend.no_truncation()  # which a tokenizer.json may ask for
            backend.no_padding()
        self._encode: Callable[[str], list[int]] = (
            (lambda text: backend.encode(text, add_special_tokens=False).ids)
            if backend is not None
            else (lambda text: tokenizer(text, add_special_tokens=False).input_ids)
        )
        self._decode: Callable[[list[int]], str] = (
            (lambda ids: str(backend.decode(ids, skip_special_tokens=False)))
            if backend is not None
            else (lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)))
        )
        self._encode_again = lru_cache(_PIECES)(self._encode)  # a group's members read the same words and tool results
        self._heads: dict[str, list[int] | None] = {}
        self._format: _ChatML | _Template
        if config.format == "chatml":
            self._format = _ChatML(self)
        else:
            self._format = _Template(self)
        vocabulary = tokenizer.get_vocab()
        if missing := [text for text in self._format.end_texts if text not in vocabulary]:
            raise TaudojoError(f"The tokenizer has no {missing[0]} token, which chat.format={config.format} ends a turn with.")
        self._turn_ends = [vocabulary[text] for text in self._format.end_texts]
        others = [tokenizer.eos_token_id, vocabulary.get("<|endoftext|>")]
        self.stop_token_ids = list(dict.fromkeys([*self._turn_ends, *(token for token in others if token is not None)]))
        self.splits = self._format.differs and config.history == "rendered"
        self.departs = self._format.differs and config.history == "sampled"

    def opening(self, system: str, tools: Sequence[Mapping[str, Any]] | None, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation so far, up to where the policy speaks. `tools`: OpenAI function schemas or None."""
        return self._opening_ids(self._format.opening(self._control_cut(system), tools, [self._safe(m) for m in messages]))

    def extend(self, messages: Sequence[Message]) -> list[int]:
        """Ids that follow a closed policy turn: tool results or a user's words, up to where the policy speaks again."""
        if not messages or any(message.role == "assistant" for message in messages):
            raise ValueError("extend takes the tool or user messages that answer a policy's turn")
        return self._ids(self._format.extension([self._safe(m) for m in messages]))

    def assistant(self, turn: AgentTurn) -> list[int]:
        """Ids of a turn as the policy should write it, end token included: the target of supervised training."""
        content = self._control_cut(turn.content) if turn.content else None
        return self._ids(self._format.turn(Message("assistant", content, turn.actions)))

    def close(self, sampled: Sequence[int]) -> list[int]:
        """The end token when a turn was cut off before it; nothing else."""
        return [] if sampled and sampled[-1] in self._turn_ends else [self._turn_ends[0]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, control tokens included: parsers want them."""
        return self._decode(list(ids))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in text.split(_CUT):
            if piece:
                ids += self._encode_again(piece) if len(piece) < _LONG else self._encode(piece)
        return ids

    def _opening_ids(self, text: str) -> list[int]:
        """As `_ids`, but a long system prompt, which all episodes share, is looked up.

        Tokenizers split at control tokens before all else, so the ids of what is before one and of what begins with it are
        those of the whole; of each system prompt that is checked once.
        """
        head = self._system_of(text)
        rest = text[len(head) :]
        known = self._heads.get(head)
        if known is not None:
            return known + self._ids(rest)
        whole = self._ids(text)
        if head and head not in self._heads:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            ids = self._ids(head)
            self._heads[head] = ids if ids + self._ids(rest) == whole else None
        return whole

    def _system_of(self, text: str) -> str:
        """The beginning of an opening up to the control token that ends its long system prompt, or nothing."""
        begin = 0
        for match in itertools.islice(self._control.finditer(text), 4):  # Llama writes three before the prompt
            if match.start() - begin >= _LONG:
                return text[: match.start()]
            begin = match.end()
        return ""

    def _safe(self, message: Message) -> Message:
        """The message with spelt-out tokens cut: every added token in words of users and tools, control tokens in the agent's."""
        content = message.content or ""
        if message.role == "assistant":
            return Message("assistant", self._control_cut(content) or None, message.actions)
        return Message(message.role, _cut(self._added, content), action=message.action)

    def _control_cut(self, text: str) -> str:
        return _cut(self._control, text)


class _ChatML:
    """rollouts.chatml, piece by piece."""

    differs = False
    end_texts = (chatml.END,)

    def __init__(self, chat: ChatFormat) -> None:
        self._role, self._tags, self._parser = chat.config.tool_role, chat.config.tool_tags, chat._parser

    def opening(self, system: str, tools: Sequence[Mapping[str, Any]] | None, messages: Sequence[Message]) -> str:
        head = self._line("system", chatml.system_text(system, tools)) if system or tools else ""
        return head + "".join(self._message(message) for message in messages) + self._line_start("assistant")

    def extension(self, messages: Sequence[Message]) -> str:
        return "\n" + "".join(self._message(message) for message in messages) + self._line_start("assistant")

    def turn(self, message: Message) -> str:
        return self._spoken(message) + chatml.END

    def _message(self, message: Message) -> str:
        if message.role == "assistant":
            return self._line("assistant", self._spoken(message))
        if message.role == "tool":
            return self._line(self._role, chatml.tool_text(message.content or "", self._tags))
        return self._line("user", message.content or "")

    def _spoken(self, message: Message) -> str:
        calls = self._parser.format_calls(message.actions) if message.actions else ""
        return "\n".join(part for part in ((message.content or "").strip(), calls) if part)

    def _line(self, role: str, text: str) -> str:
        return f"{self._line_start(role)}{text}{chatml.END}\n"

    def _line_start(self, role: str) -> str:
        return f"{chatml.START}{role}\n"


_PROBE = "QzProbeQz"
_CALL = Action("probe", {"value": _PROBE})
_TOOLS = [
    {"type": "function", "function": {"name": "probe", "description": "d", "parameters": {"type": "object", "properties": {}}}}
]


class _Template:
    """A Hugging Face chat template in pieces: what rendering gains when one turn is added to a dummy conversation."""

    def __init__(self, chat: ChatFormat) -> None:
        self._tokenizer = chat.tokenizer
        self._arguments = dict(chat.config.template_kwargs)
        if chat.config.template_file:
            self._arguments["chat_template"] = Path(chat.config.template_file).read_text()
        elif not chat.tokenizer.chat_template:
            raise TaudojoError("The tokenizer has no chat template; set model.chat.format=chatml or model.chat.template_file.")
        self._control = chat._control
        self._json_arguments = False
        self._user = {"role": "user", "content": "Hi"}
        self._greets = self._accepts([{"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}, self._user])
        self._said = Message("assistant", _PROBE)
        self._called = Message("assistant", None, (_CALL,))
        if not self._accepts([self._user, *self._to_hf([self._called])]):
            self._json_arguments = True  # DeepSeek's template joins the arguments as a string
        self.end_texts = tuple(dict.fromkeys(self._ends(message)[-1] for message in (self._said, self._called)))
        self.differs = self._differs(chat)

    def opening(self, system: str, tools: Sequence[Mapping[str, Any]] | None, messages: Sequence[Message]) -> str:
        if not self._greets:  # a template that insists on a user's first word
            first = next((i for i, message in enumerate(messages) if message.role != "assistant"), 0)
            messages = messages[first:]
        head = [{"role": "system", "content": system}] if system else []
        return self._render([*head, *self._to_hf(messages)], tools, generate=True)

    def extension(self, messages: Sequence[Message]) -> str:
        names = [m.action.name if m.action else "unknown" for m in messages if m.role == "tool"]
        before = Message("assistant", None, tuple(Action(name, {"value": _PROBE}) for name in names)) if names else self._said
        whole = self._render([self._user, *self._to_hf([before, *messages])], generate=True)
        ends = self._control.finditer(whole, whole.rindex(_PROBE))
        for _ in self._ends(before):  # as many as close the turn; in the past their names may differ (harmony's <|end|>)
            end = next(ends).end()
        return whole[end:]

    def turn(self, message: Message) -> str:
        asked = self._render([self._user], generate=True)
        whole = self._render([self._user, *self._to_hf([message])])
        if not whole.startswith(asked):
            raise TaudojoError(
                "The chat template writes an agent's turn otherwise than it asks for one; set model.chat.template_file."
            )
        *_, end = self._control.finditer(whole, len(asked))
        return whole[len(asked) : end.end()]

    def _render(
        self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, generate: bool = False
    ) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, tools=list(tools) if tools else None, tokenize=False, add_generation_prompt=generate, **self._arguments
            )
        )

    def _accepts(self, messages: list[dict[str, Any]]) -> bool:
        from jinja2 import TemplateError

        try:
            self._render(messages, generate=True)
        except (TemplateError, TypeError):
            return False
        return True

    def _ends(self, message: Message) -> list[str]:
        """The control tokens that close a turn, the last of which is where sampling stops."""
        whole = self._render([self._user, *self._to_hf([message])])
        at = whole.rfind(_PROBE)
        found = self._control.findall(whole, at) if at >= 0 else []
        if not found:
            what = "writes no tool calls" if at < 0 else "ends a turn without a control token"
            raise TaudojoError(f"The model's chat template {what}; set model.chat.template_file to one that fits.")
        return found

    def _differs(self, chat: ChatFormat) -> bool:
        """Whether a conversation that grew turn by turn differs from the same conversation rendered at once."""
        asked = Message("user", "Hi")
        result = Message("tool", "done", action=_CALL)
        more = Message("user", "And more?")
        try:
            turns = [self.turn(self._called), self.turn(self._said)]
        except TaudojoError:
            return True
        pieces = [self.opening("S", _TOOLS, [asked]), turns[0], self.extension([result]), turns[1], self.extension([more])]
        grown = [token for piece in pieces for token in chat._ids(piece)]
        return grown != chat._ids(self.opening("S", _TOOLS, [asked, self._called, result, self._said, more]))

    def _to_hf(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as chat templates know them. A tool result takes the id of the call that it answers."""
        turns: list[dict[str, Any]] = []
        open_ids: list[str] = []
        for message in messages:
            if message.role == "tool":
                name = message.action.name if message.action else "unknown"
                call_id = open_ids.pop(0) if open_ids else "call00000"
                turns.append({"role": "tool", "name": name, "tool_call_id": call_id, "content": message.content or ""})
            elif message.actions:
                number = len(turns) % 100  # nine letters in all are Mistral's rule
                open_ids = [f"call{number:02d}{i:03d}" for i in range(len(message.actions))]
                calls = [
                    {"id": call_id, "type": "function", "function": {"name": a.name, "arguments": self._arguments_of(a)}}
                    for call_id, a in zip(open_ids, message.actions, strict=True)
                ]
                turns.append({"role": "assistant", "content": message.content or "", "tool_calls": calls})
            else:
                turns.append({"role": message.role, "content": message.content or ""})
        return turns

    def _arguments_of(self, action: Action) -> dict[str, Any] | str:
        return json.dumps(dict(action.arguments), ensure_ascii=False) if self._json_arguments else dict(action.arguments)


def _alternatives(texts: Any) -> re.Pattern[str]:
    """A pattern of these strings, the longest first."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def _cut(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda found: found.group()[0] + _CUT + found.group()[1:], text.replace(_CUT, ""))
