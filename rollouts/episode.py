"""One episode as one coroutine: the policy's tokens go in, the world answers, the conversation grows at its end.

    trajectory = await play(request, world, engine.generate)

Nothing sampled is ever rendered again. The episode's only hook is `generate`: an engine, or the expert (`gold_policy`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from envs.domain import Domain
from envs.env import Env
from envs.errors import UserError
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

Generate = Callable[[Sequence[int], SamplingParams], Awaitable[Generation]]


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


class _Context:
    """The growing row of tokens, in segments."""

    def __init__(self) -> None:
        self.segments: list[TokenSegment] = []

    def start(self, ids: list[int]) -> None:
        self.segments.append(TokenSegment([], [], [], []))
        self.append(ids)

    @property
    def ids(self) -> list[int]:
        return self.segments[-1].token_ids

    def append(self, ids: Sequence[int]) -> None:
        """Tokens of the world: no loss."""
        segment = self.segments[-1]
        segment.token_ids.extend(ids)
        segment.loss_mask.extend([False] * len(ids))
        segment.logprobs.extend([0.0] * len(ids))

    def sampled(self, generation: Generation) -> None:
        """Tokens of the policy."""
        segment = self.segments[-1]
        start = len(segment.token_ids)
        segment.token_ids.extend(generation.token_ids)
        segment.loss_mask.extend([True] * len(generation.token_ids))
        segment.logprobs.extend(generation.logprobs)
        segment.versions.append((start, len(segment.token_ids), generation.weight_version))


async def play(request: EpisodeRequest, world: World, generate: Generate) -> Trajectory:
    """Plays one episode to its end and scores it. Engine failures propagate; everything else ends in a `StopReason`.

    Where the customer fails before the first turn, nothing is sampled and the only segment is empty.
    """
    begin = time.monotonic()
    env = world.new_env(request)
    if request.policy == "gold":
        generate = gold_policy(env, world.chat)
    events = world.events.episode(request.task.id) if world.events else OFF
    env.open(request.seed)
    await hear_user(env, events)
    system, tools = system_prompt(world.domain, world.style, world.parser, solo=env.solo)
    context = _Context()
    context.start([] if env.done else world.chat.opening(system, tools, world.rendered(env.transcript.agent_messages)))
    limits = world.limits
    cached, generating, turn_number = 0, 0.0, 0
    while not env.done:
        room = limits.max_model_len - len(context.ids)
        if room < 2:
            env.interrupt(StopReason.CONTEXT_FULL)
            break
        if time.monotonic() - begin > limits.deadline_s:
            env.interrupt(StopReason.TIMEOUT)
            break
        params = SamplingParams(
            max_tokens=min(limits.max_turn_tokens, room - 1),
            temperature=request.temperature,
            stop_token_ids=tuple(world.chat.stop_token_ids),
            seed=(request.seed * 1009 + turn_number) % 2**31,
        )
        asked = time.monotonic()
        generation = await generate(context.ids, params)
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
        new += await hear_user(env, events)
        events.write("step_complete", turn_kind(turn), asked)
        if env.done:
            break
        if world.chat.splits:
            context.start(world.chat.opening(system, tools, world.rendered(env.transcript.agent_messages)))
        else:
            context.append(world.chat.close(generation.token_ids))
            context.append(world.chat.extend(world.rendered(new)))
    transcript = env.transcript
    scored = time.monotonic()
    reward = world.reward_fn(request.task, transcript, env)
    events.write("evaluator", "reward", scored)
    usage = usage_of(env.user)
    return Trajectory(
        transcript=transcript,
        kind=request.task.kind,
        segments=context.segments,
        reward=reward,
        metrics=episode_metrics(request.task, transcript, env, reward),
        stage=request.stage,
        step=request.step,
        group=request.group,
        seed=request.seed,
        seconds=time.monotonic() - begin,
        cached_tokens=cached,
        timings={"generate": generating},
        user_usage=usage.to_json() if usage else {},
    )


async def hear_user(env: Env, events: EpisodeEvents = OFF) -> tuple[Message, ...]:
    """The customer's turn, if it is theirs: their words, after whatever they do on their own device.

    A customer that fails ends the episode as USER_ERROR.
    """
    heard: tuple[Message, ...] = ()
    while env.awaiting_user:
        asked = time.monotonic()
        try:
            words = env.ask()
            reply = words if isinstance(words, UserReply | str) else await words
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
    return heard


def gold_policy(env: Env, chat: ChatFormat) -> Generate:
    """The expert's turns as if they had been sampled: the target tokens of SFT, with log-probability 0."""
    agent = env.domain.expert(env.task, solo=env.solo)

    async def generate(token_ids: Sequence[int], params: SamplingParams) -> Generation:
        ids = chat.assistant(agent.next_turn(env.transcript))
        return Generation(ids, [0.0] * len(ids), "stop")

    return generate
