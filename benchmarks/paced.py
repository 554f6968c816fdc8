"""A rollout worker whose customers take their time, as language models do, and that counts what it uses; for `benchmarks.scale`.

Everything else is real: environment, tools, prompts, tokenizer, parser, reward. The expert speaks, at the pace of a fake engine
(`EpisodeRequest.policy="paced"`).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from envs.types import Task
from envs.users.base import User, UserReply
from rollouts.engines.base import EngineConfig
from rollouts.engines.fake import FakeEngine
from rollouts.worker import RolloutWorker, WorldConfig


class SlowUser:
    """A customer whose every answer takes `latency_s`, times up to 1 + `jitter` by the conversation."""

    def __init__(self, inner: User, latency_s: float, jitter: float) -> None:
        self.inner, self.latency_s, self.jitter = inner, latency_s, jitter
        self._said = 0
        self._seed = 0

    def reset(self, task: Task, seed: int | None) -> None:
        self.inner.reset(task, seed)
        self._said, self._seed = 0, seed or 0

    async def opening(self) -> UserReply | str:
        await self._think()
        return self.inner.opening()  # type: ignore[return-value]

    async def reply(self, message: str) -> UserReply | str:
        await self._think()
        return self.inner.reply(message)  # type: ignore[return-value]

    async def _think(self) -> None:
        self._said += 1
        await asyncio.sleep(self.wait_s(self._seed, self._said))

    def wait_s(self, seed: int, number: int) -> float:
        """What answer `number` (the first is 1) takes in the conversation with this seed."""
        share = zlib.crc32(f"{seed}/{number}".encode()) / 2**32
        return self.latency_s * (1 + self.jitter * share)


@dataclass(frozen=True)
class Meter:
    """What a process has used: CPU seconds of all its threads, bytes of its heap, tokens of its engine."""

    cpu_s: float
    heap_bytes: int
    peak_bytes: int
    tokens: int = 0


class PacedWorker(RolloutWorker):
    """`user_settings` of the world has `latency_s` and `jitter` beside those of the scripted customer."""

    def __init__(self, world: WorldConfig, engine: EngineConfig, number: int = 0) -> None:
        settings = dict(world.user_settings)
        latency_s, jitter = settings.pop("latency_s"), settings.pop("jitter")
        super().__init__(replace(world, user_settings=settings), engine, number)
        new_user = self._world.new_user
        self._world = replace(self._world, new_user=lambda: SlowUser(new_user(), latency_s, jitter))  # type: ignore[arg-type,return-value]
        self._peak = 0
        self._watcher: asyncio.Task[None] | None = None

    async def settle(self) -> Meter:
        """What was used so far, after garbage was collected; the peak is counted from here on."""
        self._watcher = self._watcher or asyncio.create_task(self._watch())
        gc.collect()
        self._peak = heap_bytes()
        return await self.meter()

    async def meter(self) -> Meter:
        """What was used so far."""
        assert isinstance(self._engine, FakeEngine)
        return Meter(time.process_time(), heap_bytes(), self._peak, self._engine.written)

    async def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, heap_bytes())
            await asyncio.sleep(1.0)


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def heap_info() -> Callable[[], int] | None:
    """A function that tells the bytes in use, where the C library has one and Python allocates with it (PYTHONMALLOC=malloc)."""
    if os.environ.get("PYTHONMALLOC") != "malloc" or sys.platform != "linux":
        return None
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return None
    mallinfo2.restype = _MallInfo

    def told() -> int:
        info = mallinfo2()
        return info.uordblks + info.hblkhd

    return told


def _resident_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


#: Bytes of this process's heap, or its resident memory where that is all that can be known.
heap_bytes: Callable[[], int] = heap_info() or _resident_bytes
