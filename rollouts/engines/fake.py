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
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

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
        self._asked = 0
        self._slots = _Slots(self.script.slots) if self.script.slots else None
        self._running = asyncio.Event()
        self._running.set()

    async def generate(self, token_ids: Sequence[int], params: SamplingParams) -> Generation:
        number, self._asked = self._asked, self._asked + 1
        if self._keep:
            self.requests.append(list(token_ids))
        await self._running.wait()
        version = self.weight_version
        ids = list(self._answer(token_ids)) if params.exact else _until_stop(self._answer(token_ids), params.stop_token_ids)
        ids = ids[: params.max_tokens]
        script = self.script
        pace = 1 + script.jitter * _share(token_ids) if script.jitter else 1.0
        if self._slots is None:
            await asyncio.sleep((script.latency_s + script.token_s * len(ids)) * pace)
        else:
            await asyncio.sleep(script.latency_s * pace)
            await self._slots.work(script.token_s * len(ids) * pace, params.priority)
        if script.fail_at is not None and number >= script.fail_at:
            raise EngineFailed(f"request {number} fails, as the script of this fake engine says")
        self.written += len(ids)
        stopped = bool(ids) and ids[-1] in params.stop_token_ids
        return Generation(ids, [LOGPROB] * len(ids), "stop" if stopped else "length", version)

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        return [0.0] + [LOGPROB] * (len(token_ids) - 1)

    async def load_weights(self, file: str, version: int) -> None:
        self.loads.append(file)
        self.weight_version = version

    async def pause(self) -> None:
        self._running.clear()

    async def resume(self) -> None:
        self._running.set()

    async def close(self) -> None:
        self._running.set()

    def _scripted(self, token_ids: Sequence[int]) -> Sequence[int]:
        answers = self.script.answers
        return answers[_hash(token_ids) % len(answers) if len(answers) > 1 else 0]


class _Slots:
    """So many pieces of work at once; the others wait, the lowest priority first."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    async def work(self, seconds: float, priority: int) -> None:
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
            await asyncio.sleep(seconds)
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
