"""A rollout worker: a Ray actor that hosts one engine and plays many episodes at once as coroutines."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from rollouts.episode import EpisodeLimits, World, play
from rollouts.events import EventLog, EventSettings
from rollouts.lockstep import LockStep
from rollouts.parsers import get_parser
from rollouts.prompts import Style
from rollouts.trajectory import EpisodeRequest, Trajectory


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


def build_world(config: WorldConfig) -> World:
    """Loads domain, tokenizer, parser, user and reward."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model_path)
    parser = get_parser(config.parser, tokenizer)
    domain = load_domain(config.domain, config.source)
    user_model = str(config.user_settings.get("model", config.user))
    return World(
        domain=domain,
        chat=ChatFormat(tokenizer, config.chat, parser),
        parser=parser,
        style=config.style,
        reward_fn=build_reward(config.reward),
        new_user=user_factory(config.user, config.user_settings, domain, asynchronous=True),
        limits=config.limits,
        events=EventLog(config.events, Path(config.model_path).name, user_model) if config.events else None,
    )


def build_engine(config: EngineConfig) -> Engine:
    if config.model_path.startswith("fake:"):
        from rollouts.engines.fake import FakeEngine

        return FakeEngine(config)
    from rollouts.engines.vllm import VLLMEngine

    return VLLMEngine(config)


class RolloutWorker:
    """The actor's class. `ray.remote` wraps it in `scheduler.py`; tests may use it directly."""

    def __init__(self, world: WorldConfig, engine: EngineConfig) -> None:
        ensure_own_packages()
        self._world = build_world(world)
        self._engine = build_engine(engine)

    async def ready(self) -> int:
        """Process id, once the engine is up."""
        return os.getpid()

    async def play(self, request: EpisodeRequest) -> Trajectory:
        return await play(request, self._world, self._engine.generate)

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
