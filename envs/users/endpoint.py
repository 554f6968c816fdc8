"""Ask a chat-completions endpoint, patiently: a time limit, retries with back-off, and a count of tokens and money.

>>> endpoint = ChatEndpoint(EndpointSettings(model="qwen3", base_url="http://127.0.0.1:8000/v1"))
>>> endpoint.ask([{"role": "user", "content": "Hello"}]).content
'Hi there!'

The key is read from the environment, and from nowhere else; it is neither kept in a settings object nor in any message.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from envs.errors import TaudojoError, UserError

if TYPE_CHECKING:
    import openai

#: Answers below 500 that another try may change.
_TEMPORARY = {408, 409, 425, 429}
#: A wrong key, address or model. Where it is the first thing that an endpoint says, no episode would fare better.
_MISTAKEN = {401, 403, 404}
#: A server may ask for longer pauses than `max_backoff_s`, but not longer than this.
_LONGEST_PAUSE_S = 120.0


@dataclass(frozen=True)
class EndpointSettings:
    """Whom to ask and how.

    Args:
        model: The model's name at the endpoint.
        base_url: The endpoint up to `/v1`; None takes OPENAI_BASE_URL, else OpenAI itself.
        api_key_env: The environment variable that holds the key. A server of your own may do without.
        temperature, max_tokens, seeded: Sent with each request; None (False) leaves them out, for models that refuse them.
        attempts: Tries for one answer, the first included.
        backoff_s: Pause before the second try; doubled each time, up to `max_backoff_s`.
        usd_per_million_prompt_tokens, usd_per_million_completion_tokens: Prices; without them no cost is counted.
        extra_body: Further fields of the request, such as `{"chat_template_kwargs": {"enable_thinking": false}}`.
    """

    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    max_tokens: int | None = 1024
    seeded: bool = True
    timeout_s: float = 60.0
    attempts: int = 6
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    usd_per_million_prompt_tokens: float | None = None
    usd_per_million_completion_tokens: float | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Usage:
    """What was used so far. `cost_usd` stays None without prices."""

    answers: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None

    def to_json(self) -> dict[str, float]:
        """Only numbers: the cost is left out where it is not known."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class ModelCall:
    """A tool call as the endpoint numbers it."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the model said; text or calls, never nothing."""

    content: str | None
    calls: tuple[ModelCall, ...] = ()


class _Unusable(Exception):
    """An answer that came, but says nothing that can be used."""


class ChatEndpoint:
    """One endpoint, shared by all customers of a run; `usage` counts for all of them."""

    def __init__(self, settings: EndpointSettings) -> None:
        if importlib.util.find_spec("openai") is None:
            raise TaudojoError("A customer played by a language model needs the package openai: pip install openai.")
        self.settings = settings
        self.usage = Usage()
        self._key()
        self._sync_client: openai.OpenAI | None = None
        # An asynchronous client's connections belong to the event loop that opened them.
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = WeakKeyDictionary()
        self._jitter = random.Random()

    def __deepcopy__(self, memo: dict[int, Any]) -> ChatEndpoint:
        """A copied customer talks to the same endpoint."""
        return self

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        seed: int | None = None,
        meter: Usage | None = None,
    ) -> Answer:
        """The model's next message; `meter` counts it beside `usage`.

        Raises:
            UserError: the endpoint refuses, or gave no usable answer in all attempts.
            TaudojoError: it has never answered, and refuses the key or does not know the model.
        """
        meters = [self.usage, *([meter] if meter else [])]
        request = self._request(messages, tools, seed)
        for attempt in itertools.count(1):
            try:
                raw = self._client().chat.completions.with_raw_response.create(**request)
                return self._read(raw.http_response.content, meters)
            except self._expected() as error:
                pause_s = self._pause(error, attempt, meters)
            time.sleep(pause_s)
        raise AssertionError("unreachable")

    async def aask(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        seed: int | None = None,
        meter: Usage | None = None,
    ) -> Answer:
        """`ask` for a caller with other things to do meanwhile."""
        meters = [self.usage, *([meter] if meter else [])]
        request = self._request(messages, tools, seed)
        for attempt in itertools.count(1):
            try:
                raw = await self._async_client().chat.completions.with_raw_response.create(**request)
                return self._read(raw.http_response.content, meters)
            except self._expected() as error:
                pause_s = self._pause(error, attempt, meters)
            await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")

    def _request(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], seed: int | None
    ) -> dict[str, Any]:
        settings = self.settings
        optional = {
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "seed": seed if settings.seeded else None,
            "tools": list(tools) or None,
            "extra_body": dict(settings.extra_body) or None,
        }
        return {
            "model": settings.model,
            "messages": list(messages),
            **{name: value for name, value in optional.items() if value is not None},
        }

    def _client(self) -> openai.OpenAI:
        if self._sync_client is None:
            import openai

            self._sync_client = openai.OpenAI(**self._client_settings())
        return self._sync_client

    def _async_client(self) -> openai.AsyncOpenAI:
        loop = asyncio.get_running_loop()
        client = self._async_clients.get(loop)
        if client is None:
            import openai

            client = self._async_clients[loop] = openai.AsyncOpenAI(**self._client_settings())
        return client

    def _client_settings(self) -> dict[str, Any]:
        settings = self.settings
        return {"api_key": self._key(), "base_url": settings.base_url, "timeout": settings.timeout_s, "max_retries": 0}

    def _key(self) -> str:
        name = self.settings.api_key_env
        if key := os.environ.get(name):
            return key
        if self.settings.base_url or os.environ.get("OPENAI_BASE_URL"):
            return "none"  # the client insists on some key
        raise TaudojoError(
            f"A customer played by {self.settings.model} needs a key: set the environment variable {name}, "
            "or user.settings.base_url for a server that asks for none."
        )

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key that they refuse."""
        key = os.environ.get(self.settings.api_key_env)
        return text.replace(key, "***") if key else text

    def _expected(self) -> tuple[type[Exception], ...]:
        import openai

        return openai.APIError, _Unusable

    def _pause(self, error: Exception, attempt: int, meters: Sequence[Usage]) -> float:
        """Seconds to wait before the next try. Raises UserError where there is none."""
        import openai

        settings = self.settings
        said = _short(self._without_key(str(error)))
        asked = 0.0
        if isinstance(error, openai.APIStatusError):
            final = error.status_code < 500 and error.status_code not in _TEMPORARY
            if final or error.code == "insufficient_quota":
                told = (
                    f"{settings.model} refuses to play the customer (status {error.status_code}: {said}); "
                    "check user.settings and the key."
                )
                if error.status_code in _MISTAKEN and not self.usage.answers:
                    raise TaudojoError(told) from None
                raise UserError(told) from None
            asked = _seconds(error.response.headers.get("retry-after"))
        if attempt >= settings.attempts:
            raise UserError(
                f"{settings.model} gave no usable answer for the customer in {attempt} tries, the last one: {said}; "
                "check the endpoint, or raise user.settings.attempts or timeout_s."
            ) from None
        for usage in meters:
            usage.retries += 1
        backoff = min(settings.max_backoff_s, settings.backoff_s * 2 ** (attempt - 1))
        return max(backoff * self._jitter.uniform(0.75, 1.0), min(asked, _LONGEST_PAUSE_S))

    def _read(self, content: bytes, meters: Sequence[Usage]) -> Answer:
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise _Unusable(f"an answer that cannot be read as JSON ({_short(repr(content))})") from None
        for usage in meters:
            self._count(body, usage)
        try:
            message = body["choices"][0]["message"]
            text = message.get("content")
            calls = tuple(_call(raw) for raw in message.get("tool_calls") or ())
            _check_writable([text, *([call.id, call.name, call.arguments] for call in calls)])
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise _Unusable(f"a malformed answer ({type(error).__name__}: {_short(str(error))})") from None
        if not isinstance(text, str) or not text.strip():
            text = None
        if text is None and not calls:
            raise _Unusable("an empty answer")
        return Answer(text, calls)

    def _count(self, body: Any, usage: Usage) -> None:
        """Unusable answers have been paid for too."""
        told = body.get("usage") if isinstance(body, Mapping) else None
        told = told if isinstance(told, Mapping) else {}
        prompt, completion = _tokens(told.get("prompt_tokens")), _tokens(told.get("completion_tokens"))
        usage.answers += 1
        usage.prompt_tokens += prompt
        usage.completion_tokens += completion
        prices = self.settings.usd_per_million_prompt_tokens, self.settings.usd_per_million_completion_tokens
        if prices != (None, None):
            cost = prompt * (prices[0] or 0.0) + completion * (prices[1] or 0.0)
            usage.cost_usd = (usage.cost_usd or 0.0) + cost / 1e6


def _call(raw: Mapping[str, Any]) -> ModelCall:
    function = raw["function"]
    arguments = function.get("arguments") or "{}"
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(function["name"], str) or not isinstance(arguments, dict):
        raise TypeError("a tool call needs a name and an object of arguments")
    return ModelCall(str(raw.get("id") or ""), function["name"], arguments)


def _check_writable(value: Any) -> None:
    """Raises ValueError for half characters (lone surrogates), NaN and infinity, RecursionError for what is nested too deeply.

    Python reads them from JSON, but no tokenizer, file or next request would take them.
    """
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _tokens(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _seconds(header: str | None) -> float:
    """The Retry-After header as seconds; 0 where it is a date or nothing."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}…"
