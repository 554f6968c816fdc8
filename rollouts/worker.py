"""A rollout worker: a Ray actor that hosts one engine and plays many episodes at once as coroutines."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from envs.data import DataSource
from envs.domain import load_domain
from envs.errors import TaudojoError
from envs.identity import ensure_own_packages
from envs.users.registry import user_factory
from rewards.compose import build_reward
from rollouts.chat import ChatConfig, ChatFormat
from rollouts.engines.base import Engine, EngineConfig
from rollouts.episode import EpisodeLimits, Gate, World, play
from rollouts.events import EventLog, EventSettings
from rollouts.lockstep import LockStep
from rollouts.parsers import get_parser
from rollouts.prompts import Style, first_examples
from rollouts.structured import tool_call_grammar
from rollouts.trajectory import EpisodeRequest, Trajectory
from rollouts.watchdog import Place, Standstill, overdue

#: Episodes that end within so many seconds travel together, while others are still played.
_TOGETHER_S = 0.2


@dataclass(frozen=True)
class WorldConfig:
    """What a worker needs to build its `World`. Plain data: it crosses process borders."""

    model_path: str
    domain: str
    source: DataSource
    chat: ChatConfig
    parser: str
    style: Style = "compact"
    user: str = "scripted"
    user_settings: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    limits: EpisodeLimits = field(default_factory=EpisodeLimits)
    events: EventSettings | None = None
    structured: bool = False
    examples: int = 0  # how many of the domain's example calls the prompt shows


def build_world(config: WorldConfig) -> World:
    """Loads domain, tokenizer, parser, user and reward."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model_path)
    domain = load_domain(config.domain, config.source)
    tools = domain.solo_tool_schemas if config.user == "solo" else domain.tool_schemas
    parser = get_parser(config.parser, tokenizer, tools)
    user_model = str(config.user_settings.get("model", config.user))
    return World(
        domain=domain,
        chat=ChatFormat(tokenizer, config.chat, parser),
        parser=parser,
        style=config.style,
        reward_fn=build_reward(config.reward),
        new_user=user_factory(config.user, config.user_settings, domain, asynchronous=True),
        limits=config.limits,
        grammar=tool_call_grammar(config.parser, tools) if config.structured else None,
        examples=first_examples(domain, config.examples),
        events=EventLog(config.events, _model_name(config.model_path), user_model) if config.events else None,
    )


def _model_name(path: str) -> str:
    """The folder's name; of a snapshot in the hub's cache (`models--org--name/snapshots/<commit>`) the model's."""
    folder = Path(path)
    return folder.parents[1].name.split("--")[-1] if folder.parent.name == "snapshots" else folder.name


def build_engine(config: EngineConfig) -> Engine:
    if config.model_path.startswith("fake:"):
        from rollouts.engines.fake import FakeEngine

        return FakeEngine(config, keep=False)
    from rollouts.engines.vllm import VLLMEngine

    return VLLMEngine(config)


@dataclass(frozen=True)
class Order:
    """An episode to play, under the scheduler's number, and how often it has been begun."""

    number: int
    request: EpisodeRequest
    attempt: int = 1


@dataclass(frozen=True)
class Played:
    """A number and its trajectory, or why there is none."""

    number: int
    trajectory: Trajectory | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class Report:
    """What happened since the last one: episodes that ended, and now and then those that stand still."""

    played: list[Played]
    standstills: list[Standstill] = field(default_factory=list)


class RolloutWorker:
    """The actor's class. `ray.remote` wraps it in `scheduler.py`; tests may use it directly.

    number: Which worker of the run this is.
    """

    def __init__(self, world: WorldConfig, engine: EngineConfig, number: int = 0) -> None:
        ensure_own_packages()
        self.number = number
        self._world = build_world(world)
        self._engine = build_engine(engine)
        self._gate = Gate()
        self._live: dict[int, tuple[asyncio.Task[None], Place]] = {}
        self._played: dict[int, Played] = {}
        self._first = 0  # episodes with lower numbers are of earlier rounds: nobody waits for them
        self._news = asyncio.Event()
        self._listener = 0
        self._looked = time.monotonic()

    async def ready(self) -> int:
        """Process id, once the engine is up."""
        return os.getpid()

    async def begin(self, orders: Sequence[Order]) -> None:
        """Starts these episodes; `report` brings them back."""
        for order in orders:
            if order.number < self._first:
                continue
            place = Place(order.request.task.id)
            self._live[order.number] = (asyncio.create_task(self._one(order, place)), place)

    async def report(self, wait_s: float, standstill_s: float, first: int = 0, received: Sequence[int] = ()) -> Report:
        """What ended, as soon as something has, or nothing after `wait_s`: then the worker lives, and has nothing to tell.

        Calls may overtake each other, and an answer may find nobody who waits for it. So what ended is told again until a later
        call has its number in `received`, or counts from `first` on.
        Episodes that have waited for one thing longer than `standstill_s` are named, at most once in that time.
        """
        self._forget(first)
        for number in received:
            self._played.pop(number, None)
        self._listener += 1
        mine = self._listener
        self._news.set()  # an earlier listener has gone away, and need not wait any more
        self._news = asyncio.Event()
        try:
            if not self._played:
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            await asyncio.sleep(_TOGETHER_S if self._live else 0)
        except TimeoutError:
            pass
        if mine != self._listener:
            return Report([])
        standstills: list[Standstill] = []
        if time.monotonic() - self._looked > standstill_s:
            self._looked = time.monotonic()
            standstills = overdue((place for _, place in self._live.values()), standstill_s)
        return Report(list(self._played.values()), standstills)

    async def drop(self, before: int) -> None:
        """Forgets the episodes with numbers below `before`, also those that are still on their way here."""
        self._forget(before)
        self._news.set()  # whoever listens need not wait for what does not come

    def _forget(self, before: int) -> None:
        if before <= self._first:
            return
        self._first = before
        for number in [number for number in self._live if number < before]:
            task, _ = self._live.pop(number)
            task.cancel()
        self._played = {number: played for number, played in self._played.items() if number >= before}

    async def _one(self, order: Order, place: Place) -> None:
        try:
            trajectory = await self.play(order.request, place)
            played = Played(order.number, replace(trajectory, worker=self.number, attempts=order.attempt))
        except Exception as error:  # it is the scheduler's to judge
            error.add_note(traceback.format_exc())  # which does not cross the border between processes by itself
            played = Played(order.number, error=error)
        self._live.pop(order.number, None)
        self._played[order.number] = played
        self._news.set()

    async def play(self, request: EpisodeRequest, place: Place | None = None) -> Trajectory:
        return await play(request, self._world, self._engine.generate, place, self._gate)

    async def play_lockstep(self, requests: Sequence[EpisodeRequest]) -> list[Trajectory]:
        """All at once, repeatable to the last bit (see `lockstep.py`)."""
        lockstep = LockStep(self._engine, len(requests))

        async def one(number: int, request: EpisodeRequest) -> Trajectory:
            try:
                return await play(request, self._world, partial(lockstep.generate, number))
            finally:
                lockstep.leave(number)

        return list(await asyncio.gather(*(one(n, r) for n, r in enumerate(requests))))

    async def load_weights(self, safetensors: np.ndarray, version: int, **settings: Any) -> None:
        """`safetensors`: the bytes of a safetensors file, uint8, shared memory within a node. `settings` are the engine's own."""
        shm = Path("/dev/shm")
        folder = shm if shm.is_dir() and os.access(shm, os.W_OK) else None
        with tempfile.NamedTemporaryFile(dir=folder, prefix="taudojo-weights-", suffix=".safetensors") as file:
            try:
                file.write(safetensors.data)
                file.flush()
            except OSError as error:
                raise TaudojoError(
                    f"no room for {safetensors.nbytes / 2**20:.0f} MiB of weights in {file.name}: {error.strerror}"
                ) from error
            await self._engine.load_weights(file.name, version, **settings)

    async def score(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every prompt token, for the weight-sync probe."""
        return [await self._engine.score(p) for p in prompts]

    async def close(self) -> None:
        await self._engine.close()
