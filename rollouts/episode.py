"""One episode as one coroutine: the policy's tokens go in, the world answers, the conversation grows at its end.

    trajectory = await play(request, world, engine.generate)

Nothing sampled is ever rendered again. The episode's only hook is `generate`: an engine, or the expert (`gold_policy`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from envs.domain import Domain
from envs.env import Env
from envs.errors import UserError
from envs.protocols import Example
from envs.types import Message, StopReason
from envs.users.base import User, UserReply
from envs.users.registry import usage_of
from rewards.breakdown import RewardFn
from rewards.metrics import episode_metrics
from rollouts.chat import ChatFormat
from rollouts.engines.base import Generation, SamplingParams
from rollouts.events import OFF, EpisodeEvents, EventLog, calls_kind, turn_kind
from rollouts.parsers import Parser
from rollouts.prompts import Style, render_observation, system_prompt
from rollouts.trajectory import EpisodeRequest, TokenSegment, Trajectory
from rollouts.watchdog import Place

Generate = Callable[[Sequence[int], SamplingParams], Awaitable[Generation]]

#: More tokens than an episode has: earlier waves come before the last one in an engine's queue.
_BEFORE_THE_LAST_WAVE = 1_000_000


@dataclass(frozen=True)
class EpisodeLimits:
    """`max_model_len` and `max_turn_tokens` in tokens; the rest as in `Env`."""

    max_model_len: int = 4096
    max_turn_tokens: int = 160
    max_steps: int = 30
    max_errors: int = 10
    max_repeats: int = 3
    deadline_s: float = 600.0


@dataclass(frozen=True)
class World:
    """Everything that episodes of one run share. Built once per process."""

    domain: Domain
    chat: ChatFormat
    parser: Parser
    style: Style
    reward_fn: RewardFn
    new_user: Callable[[], User | None]
    limits: EpisodeLimits = field(default_factory=EpisodeLimits)
    events: EventLog | None = None
    grammar: str | None = None  # of what the policy may write; None is anything
    examples: Sequence[Example] = ()  # calls that the system prompt shows

    def new_env(self, request: EpisodeRequest) -> Env:
        limits = self.limits
        return Env(
            self.domain,
            request.task,
            self.new_user(),
            max_steps=limits.max_steps,
            max_errors=limits.max_errors,
            max_repeats=limits.max_repeats,
        )

    def rendered(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the policy reads them."""
        return [replace(m, content=render_observation(m, self.style, self.domain.compact)) for m in messages]


_NO_LOSS, _NOT_SAMPLED = array("b", [0]), array("d", [0.0])


class _Context:
    """The growing row of tokens, in segments."""

    def __init__(self) -> None:
        self.segments: list[TokenSegment] = []

    def start(self, ids: list[int]) -> None:
        self.segments.append(TokenSegment(array("i"), array("b"), array("d"), []))
        self.append(ids)

    @property
    def ids(self) -> array[int]:
        return self.segments[-1].token_ids

    def append(self, ids: Sequence[int]) -> None:
        """Tokens of the world: no loss."""
        segment = self.segments[-1]
        segment.token_ids.extend(ids)
        segment.loss_mask.extend(_NO_LOSS * len(ids))
        segment.logprobs.extend(_NOT_SAMPLED * len(ids))

    def sampled(self, generation: Generation) -> None:
        """Tokens of the policy."""
        segment = self.segments[-1]
        start = len(segment.token_ids)
        segment.token_ids.extend(generation.token_ids)
        segment.loss_mask.extend([1] * len(generation.token_ids))
        segment.logprobs.extend(generation.logprobs)
        segment.versions.extend((start + first, start + last, version) for first, last, version in generation.versions)


class Gate:
    """Lets in one at a time, each after whatever else the loop has to do.

    Many episodes begin together, and many end together. Prompts and rewards that all wanted to be made at once would hold up the
    turns of those that play, and an engine would have nothing to write.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()
        try:
            await asyncio.sleep(0)
        except BaseException:
            self._lock.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


async def play(
    request: EpisodeRequest, world: World, generate: Generate, place: Place | None = None, gate: Gate | None = None
) -> Trajectory:
    """Plays one episode to its end and scores it. Engine failures propagate; everything else ends in a `StopReason`.

    Where the customer fails before the first turn, nothing is sampled and the only segment is empty. `place` is told what the
    episode waits for. No wait outlasts the deadline: what is awaited then is cancelled, and the episode ends as TIMEOUT.
    `gate` is shared by those that play on the same loop.
    """
    begin = time.monotonic()
    place = place or Place(request.task.id)
    gate = gate or Gate()
    env = world.new_env(request)
    if request.policy in ("gold", "paced"):
        generate = gold_policy(env, world.chat, generate if request.policy == "paced" else None)
    events = world.events.episode(request.task.id) if world.events else OFF
    env.open(request.seed)
    deadline = begin + world.limits.deadline_s
    if request.policy == "none":
        env.interrupt(StopReason.ENGINE_ERROR)
    await hear_user(env, events, place, deadline)
    system, tools = system_prompt(world.domain, world.style, world.parser, solo=env.solo, examples=world.examples)
    context = _Context()
    async with gate:
        context.start([] if env.done else world.chat.opening(system, tools, world.rendered(env.transcript.agent_messages)))
    limits = world.limits
    cached, generating, turn_number, written = 0, 0.0, 0, 0
    while not env.done:
        room = limits.max_model_len - len(context.ids)
        if room < 2:
            env.interrupt(StopReason.CONTEXT_FULL)
            break
        if time.monotonic() > deadline:  # nothing was awaited that could have been cancelled
            env.interrupt(StopReason.TIMEOUT)
            break
        params = SamplingParams(
            max_tokens=min(limits.max_turn_tokens, room - 1),
            temperature=request.temperature,
            stop_token_ids=tuple(world.chat.stop_token_ids),
            seed=(request.seed * 1009 + turn_number) % 2**31,
            priority=_priority(request, written),
            grammar=world.grammar,
        )
        asked = time.monotonic()
        place.waits_for("engine")
        try:
            async with _until(deadline):
                generation = await generate(context.ids, params)
        except TimeoutError:
            env.interrupt(StopReason.TIMEOUT)
            break
        place.waits_for("world")
        written += len(generation.token_ids)
        generating += time.monotonic() - asked
        events.write("expert_call" if request.policy == "gold" else "llm_call", "generate", asked)
        cached += generation.cached_tokens
        turn_number += 1
        context.sampled(generation)
        turn = world.parser.parse(world.chat.decode(generation.token_ids))
        begun = time.monotonic()
        new = env.begin(turn)
        if turn.actions:
            events.write("tool_call", calls_kind(turn.actions), begun)
        new += await hear_user(env, events, place, deadline)
        events.write("step_complete", turn_kind(turn), asked)
        if env.done:
            break
        if world.chat.splits:
            context.start(world.chat.opening(system, tools, world.rendered(env.transcript.agent_messages)))
        else:
            context.append(world.chat.close(generation.token_ids))
            context.append(world.chat.extend(world.rendered(new)))
    async with gate:
        scored = time.monotonic()
        reward = world.reward_fn(request.task, env.transcript, env)
        metrics = episode_metrics(request.task, env.transcript, env, reward)
        scoring = time.monotonic() - scored
    events.write("evaluator", "reward", scored)
    usage = usage_of(env.user)
    return Trajectory(
        transcript=env.transcript,
        kind=request.task.kind,
        segments=context.segments,
        reward=reward,
        metrics=metrics,
        stage=request.stage,
        step=request.step,
        group=request.group,
        seed=request.seed,
        seconds=time.monotonic() - begin,
        cached_tokens=cached,
        timings={"generate": generating, "reward": scoring},
        user_usage=usage.to_json() if usage else {},
        departs=world.chat.departs,
    )


def _until(deadline: float) -> asyncio.Timeout:
    """Cancels its block at this time of `time.monotonic()`, which then raises TimeoutError."""
    return asyncio.timeout(max(0.0, deadline - time.monotonic()))


def _priority(request: EpisodeRequest, written: int) -> int:
    """The place in a busy engine's queue, the lowest first.

    As long as others wait for a place, the longest go first and end first: their places are taken by others while the rest is
    written. In the last wave whoever has the most before them goes first, so that nobody comes last alone; what is written
    counts seven tenths, so that they do not all end in the same second, which a process would then be too slow to take in.
    (With that rule all the time a wave would end together, and the engine would idle while the next one begins.)
    """
    if request.expected_tokens is None:
        return 0
    expected = round(request.expected_tokens)
    return min(0, written * 7 // 10 - expected) if request.last_wave else -expected - _BEFORE_THE_LAST_WAVE


async def hear_user(
    env: Env, events: EpisodeEvents = OFF, place: Place | None = None, deadline: float = math.inf
) -> tuple[Message, ...]:
    """The customer's turn, if it is theirs: their words, after whatever they do on their own device.

    A customer that fails ends the episode as USER_ERROR, one that does not answer before the deadline as TIMEOUT.
    """
    heard: tuple[Message, ...] = ()
    while env.awaiting_user:
        asked = time.monotonic()
        try:
            words = env.ask()
            if isinstance(words, UserReply | str):
                reply = words
            else:
                if place:
                    place.waits_for("customer")
                async with _until(deadline):
                    reply = await words
                if place:
                    place.waits_for("world")
            calls = reply.actions if isinstance(reply, UserReply) else ()
            events.write("user_sim", "calls" if calls else "text", asked, by_user=True)
            begun = time.monotonic()
            heard += env.finish(reply)
            if calls:
                events.write("tool_call", calls_kind(calls), begun, by_user=True)
        except UserError as error:
            events.write("user_sim", "error", asked, by_user=True)
            logging.getLogger(__name__).warning("task %s of %s: %s", env.task.id, env.domain.name, error)
            env.interrupt(StopReason.USER_ERROR)
        except TimeoutError:
            events.write("user_sim", "error", asked, by_user=True)
            env.interrupt(StopReason.TIMEOUT)
    return heard


def gold_policy(env: Env, chat: ChatFormat, pace: Generate | None = None) -> Generate:
    """The expert's turns as if they had been sampled: the target tokens of SFT, with log-probability 0.

    `pace`: An engine that is asked for as many tokens each time; what it says is not used.
    """
    agent = env.domain.expert(env.task, solo=env.solo)

    async def generate(token_ids: Sequence[int], params: SamplingParams) -> Generation:
        ids = chat.assistant(agent.next_turn(env.transcript))
        if pace is None:
            return Generation(ids, [0.0] * len(ids), "stop")
        taken = await pace(token_ids, replace(params, max_tokens=len(ids), exact=True))
        return Generation(ids, [0.0] * len(ids), "stop", taken.weight_version, taken.cached_tokens)

    return generate
