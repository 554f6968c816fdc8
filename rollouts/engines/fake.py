"""A fake engine: no model, chosen answers, latencies and failures. For tests, and for measuring what stands around an engine.

    FakeEngine(config, answer=lambda prompt: [5, 6, 2])                       # in this process: any function of the prompt
    EngineConfig(FakeScript(answers=[[5, 6, 2]], latency_s=0.2).model_path)   # in a rollout worker: plain data

A script's answer is a function of the prompt too (a hash picks one of its rows), so that an episode is the same on every engine.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Literal

from rollouts.engines.base import EngineConfig, EngineFailed, Generation, SamplingParams

PREFIX = "fake:"
LOGPROB = -1.0  # of every token that is sampled or scored


@dataclass(frozen=True)
class FakeScript:
    """What a fake engine does, as plain data.

    Answers take `latency_s` plus `token_s` for each token, times up to 1 + `jitter` by the prompt. From request number `fail_at`
    (the first is 0) on, every request fails. With `slots`, only so many answers are written at once, which caps the engine at
    `slots / token_s` tokens per second; the others wait in the order of their priority.
    """

    answers: Sequence[Sequence[int]] = ((0,),)
    latency_s: float = 0.0
    token_s: float = 0.0
    jitter: float = 0.0
    fail_at: int | None = None
    slots: int | None = None

    @property
    def model_path(self) -> str:
        """What `EngineConfig.model_path` says to get this engine in a rollout worker."""
        return PREFIX + json.dumps(asdict(self))

    @classmethod
    def of(cls, model_path: str) -> FakeScript:
        return cls(**json.loads(model_path.removeprefix(PREFIX) or "{}"))


@dataclass(eq=False)
class _Writing:
    """An answer on its way: when its first token was begun, by the engine's clock, and what became of the weights since."""

    tokens: int
    token_s: float
    begun: float | None = None
    swaps: list[tuple[int, int]] = field(default_factory=list)

    def written(self, now: float) -> int:
        if self.begun is None or now <= self.begun or not self.token_s:
            return 0
        return min(self.tokens, int((now - self.begun) / self.token_s))


class FakeEngine:
    """Implements `Engine`.

    Attributes:
        requests: The prompts in the order in which they came, unless `keep` is False.
        loads: The weight files.
        written: Tokens so far.
    """

    def __init__(
        self,
        config: EngineConfig,
        answer: Callable[[Sequence[int]], Sequence[int]] | None = None,
        script: FakeScript | None = None,
        keep: bool = True,
    ) -> None:
        self.config = config
        self.script = script or (FakeScript.of(config.model_path) if config.model_path.startswith(PREFIX) else FakeScript())
        self._answer = answer or self._scripted
        self.weight_version = 0
        self.requests: list[list[int]] = []
        self._keep = keep
        self.loads: list[str] = []
        self.written = 0
        self._asked = self._answered = 0
        self._slots = _Slots(self.script.slots) if self.script.slots else None
        self._writing: set[_Writing] = set()
        self._running = asyncio.Event()
        self._running.set()
        self._paused_at: float | None = None
        self._stood_s = 0.0

    async def generate(self, token_ids: Sequence[int], params: SamplingParams) -> Generation:
        number, self._asked = self._asked, self._asked + 1
        if self._keep:
            self.requests.append(list(token_ids))
        try:
            return await self._generate(number, token_ids, params)
        finally:
            self._answered += 1

    async def _generate(self, number: int, token_ids: Sequence[int], params: SamplingParams) -> Generation:
        await self._running.wait()
        version = self.weight_version
        ids = list(self._answer(token_ids)) if params.exact else _until_stop(self._answer(token_ids), params.stop_token_ids)
        ids = ids[: params.max_tokens]
        script = self.script
        pace = 1 + script.jitter * _share(token_ids) if script.jitter else 1.0
        writing = _Writing(len(ids), script.token_s * pace)
        self._writing.add(writing)
        try:
            await self._write(writing, script.latency_s * pace, params.priority)
        finally:
            self._writing.remove(writing)
        if script.fail_at is not None and number >= script.fail_at:
            raise EngineFailed(f"request {number} fails, as the script of this fake engine says")
        self.written += len(ids)
        stopped = bool(ids) and ids[-1] in params.stop_token_ids
        finish: Literal["stop", "length"] = "stop" if stopped else "length"
        return Generation(ids, [LOGPROB] * len(ids), finish, version, swaps=tuple(writing.swaps))

    async def _write(self, writing: _Writing, latency_s: float, priority: int) -> None:
        seconds = writing.tokens * writing.token_s
        if self._slots is None:
            writing.begun = self._clock() + latency_s
            await self._sleep(latency_s + seconds)
            return
        await self._sleep(latency_s)
        async with self._slots.one(priority):
            writing.begun = self._clock()
            await self._sleep(seconds)

    def _clock(self) -> float:
        """Seconds that this engine has not stood still."""
        return (time.monotonic() if self._paused_at is None else self._paused_at) - self._stood_s

    async def _sleep(self, seconds: float) -> None:
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            await self._running.wait()
            await asyncio.sleep(left)

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        return [0.0] + [LOGPROB] * (len(token_ids) - 1)

    async def load_weights(self, file: str, version: int) -> None:
        self.loads.append(file)
        self.weight_version = version
        for writing in self._writing:
            writing.swaps.append((writing.written(self._clock()), version))

    def held(self) -> int:
        return self._asked - self._answered

    async def pause(self) -> None:
        self._paused_at = self._paused_at or time.monotonic()
        self._running.clear()

    async def resume(self) -> None:
        if self._paused_at is not None:
            self._stood_s += time.monotonic() - self._paused_at
            self._paused_at = None
        self._running.set()

    async def close(self) -> None:
        self._running.set()

    def _scripted(self, token_ids: Sequence[int]) -> Sequence[int]:
        answers = self.script.answers
        return answers[_hash(token_ids) % len(answers) if len(answers) > 1 else 0]


class _Slots:
    """So many at once; the others wait, the lowest priority first."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @asynccontextmanager
    async def one(self, priority: int) -> AsyncIterator[None]:
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (priority, next(self._order), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def _until_stop(ids: Sequence[int], stop_token_ids: Sequence[int]) -> list[int]:
    """The ids up to the first stop token, which is kept."""
    ends = [at for at, token in enumerate(ids) if token in stop_token_ids]
    return list(ids[: ends[0] + 1] if ends else ids)


def _hash(token_ids: Sequence[int]) -> int:
    """The same number for the same prompt in every process."""
    return zlib.crc32(",".join(map(str, token_ids)).encode())


def _share(token_ids: Sequence[int]) -> float:
    """A number from 0 to 1 that looks random and belongs to the prompt."""
    return zlib.crc32(b"share" + ",".join(map(str, token_ids)).encode()) / 2**32
