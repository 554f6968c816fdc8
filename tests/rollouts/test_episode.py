"""Episodes on the real retail world with SmolLM2's tokenizer: a fake engine speaks, and the tokens are what was said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import pytest

from envs.domain import load_domain
from envs.env import Env
from envs.errors import TaudojoError, UserError
from envs.types import Action, AgentTurn, StopReason
from envs.users.base import UserReply
from rollouts.engines.base import EngineConfig, EngineFailed, Generation, SamplingParams
from rollouts.engines.fake import LOGPROB, FakeEngine, FakeScript
from rollouts.episode import Gate, World, play
from rollouts.gold import gold_trajectories
from rollouts.parsers import get_parser
from rollouts.prompts import first_examples, system_prompt
from rollouts.trajectory import EpisodeRequest, TokenSegment, Trajectory, user_usage
from rollouts.worker import build_world

LOOKUP = Action("get_order_details", {"order_id": "#W0000000"})


@pytest.fixture(scope="module")
def lookup(task_sets: Any) -> Any:
    return next(t for t in task_sets.heldout if t.kind == "lookup")


def played(world: World, task: Any, turns: Sequence[str | AgentTurn], **limits: Any) -> Trajectory:
    """The episode in which the policy writes these turns one after the other; the last one again and again. No end token is added
    to a string: it is what the engine sampled, cut or not."""
    world = replace(world, limits=replace(world.limits, **limits))
    rows = [world.chat.assistant(t) if isinstance(t, AgentTurn) else tokens(world, t) for t in turns]
    number = -1

    def answer(prompt: Sequence[int]) -> list[int]:
        nonlocal number
        number = min(number + 1, len(rows) - 1)
        return rows[number]

    engine = FakeEngine(EngineConfig("fake:"), answer)
    trajectory = asyncio.run(play(EpisodeRequest(task, seed=3, stage="test"), world, engine.generate))
    check_growth(trajectory, engine.requests, world)
    return trajectory


def tokens(world: World, text: str) -> list[int]:
    ids: list[int] = world.chat.tokenizer(text, add_special_tokens=False).input_ids
    return ids


def check_growth(trajectory: Trajectory, prompts: list[list[int]], world: World) -> None:
    """Every prompt is the beginning of the finished row: a conversation grows at its end and nothing is rendered again."""
    (segment,) = trajectory.segments
    for prompt in prompts:
        assert segment.token_ids[: len(prompt)].tolist() == prompt
        assert not segment.loss_mask[len(prompt) - 1]


def runs(segment: TokenSegment, mask: bool = True) -> list[list[int]]:
    """The masked stretches of tokens, in order."""
    found: list[list[int]] = []
    before = not mask
    for token, masked in zip(segment.token_ids, segment.loss_mask, strict=True):
        if masked == mask:
            if before != mask:
                found.append([])
            found[-1].append(token)
        before = masked
    return found


def text_of(world: World, ids: Sequence[int]) -> str:
    return world.chat.decode(ids)


# -- the expert


def test_the_expert_s_episodes_get_the_full_reward(world: World, task_sets: Any):
    tasks = task_sets.heldout
    roomy = replace(world, limits=replace(world.limits, max_model_len=4096))
    trajectories = gold_trajectories(roomy, tasks)
    assert len(trajectories) == len(tasks)
    for task, trajectory in zip(tasks, trajectories, strict=True):
        assert trajectory.reward.total == pytest.approx(1.0), task.id
        assert trajectory.metrics.official_reward == 1.0, task.id
        assert trajectory.metrics.exact and trajectory.metrics.well_formed == 1.0
        assert trajectory.transcript.stop_reason is StopReason.USER_STOP
        assert trajectory.transcript.calls == task.gold_actions
        assert (trajectory.kind, trajectory.stage) == (task.kind, "gold")


def test_the_mask_covers_the_policy_s_own_turns_and_nothing_else(world: World, task_sets: Any):
    for trajectory in gold_trajectories(world, task_sets.heldout[:6]):
        (segment,) = trajectory.segments
        said = [m for m in trajectory.transcript.messages if m.role == "assistant"][1:]  # the greeting is not the policy's
        expected = [world.chat.assistant(AgentTurn(m.content, m.actions)) for m in said]
        assert runs(segment) == expected
        assert [world.parser.parse(text_of(world, run)) for run in runs(segment)] == [
            AgentTurn(m.content, m.actions) for m in said
        ]
        assert [segment.token_ids[a:b].tolist() for a, b, _ in segment.versions] == expected
        assert segment.sampled == trajectory.sampled_tokens == sum(map(len, expected))


def test_what_the_policy_reads_is_the_system_prompt_the_customer_and_the_tools(world: World, task_sets: Any):
    from rollouts.prompts import render_observation

    (trajectory,) = gold_trajectories(world, task_sets.heldout[:1])
    read = [text_of(world, run) for run in runs(trajectory.segments[0], mask=False)]
    system, _ = system_prompt(world.domain, world.style, world.parser)
    first, *answers = trajectory.transcript.messages[1:]
    assert system in read[0]
    assert first.content in read[0]
    observed = [m for m in answers if m.role != "assistant"][:-1]  # the customer's last words are read by nobody
    assert len(read) == 1 + len(observed)
    for message, text in zip(observed, read[1:], strict=True):
        assert render_observation(message, world.style, world.domain.compact) in text


@pytest.mark.parametrize("name", ["airline", "mock", "telecom"])
def test_every_domain_has_an_expert_and_a_short_prompt(world: World, packaged_data: Any, name: str):
    domain = load_domain(name, packaged_data)
    roomy = replace(world, domain=domain, limits=replace(world.limits, max_model_len=30_000, max_steps=60))
    tasks = domain.tasks("base")[:5]
    trajectories = gold_trajectories(roomy, tasks)
    assert [t.transcript.task_id for t in trajectories] == [task.id for task in tasks]
    assert [t.metrics.official_reward for t in trajectories] == [1.0] * len(tasks)
    assert all(t.metrics.exact and t.metrics.well_formed in (0.0, 1.0) for t in trajectories if name != "telecom")
    system, _ = system_prompt(domain, "compact", world.parser)
    assert system in text_of(world, trajectories[0].segments[0].token_ids)


def test_the_expert_works_alone_where_there_is_no_customer(world: World, packaged_data: Any):
    telecom = load_domain("telecom", packaged_data)
    alone: Callable[[], Any] = lambda: None  # noqa: E731
    limits = replace(world.limits, max_model_len=60_000, max_steps=60)
    solo = replace(world, domain=telecom, new_user=alone, style="official", limits=limits)
    (trajectory,) = gold_trajectories(solo, [task for task in telecom.tasks("base") if task.ticket][:1])
    assert trajectory.transcript.stop_reason is StopReason.AGENT_STOP and trajectory.metrics.official_reward == 1.0


def test_gold_episodes_that_do_not_fit_are_left_out(world: World, task_sets: Any):
    cramped = replace(world, limits=replace(world.limits, max_model_len=700))
    assert len(gold_trajectories(cramped, task_sets.heldout)) < len(task_sets.heldout)


# -- a policy


def test_a_text_and_a_call_are_answered_and_their_log_probs_are_the_engine_s(world: World, lookup: Any):
    turns = [AgentTurn("Could you give me your email?"), AgentTurn(actions=(LOOKUP,)), AgentTurn("That is all. Anything else?")]
    trajectory = played(world, lookup, turns)
    assert [m.role for m in trajectory.transcript.messages] == [
        *("assistant", "user", "assistant", "user", "assistant", "tool", "assistant", "user")
    ]
    assert trajectory.transcript.stop_reason is StopReason.USER_STOP
    (segment,) = trajectory.segments
    assert runs(segment) == [world.chat.assistant(t) for t in turns]
    assert segment.logprobs.tolist() == [LOGPROB if masked else 0.0 for masked in segment.loss_mask]


def test_a_turn_that_was_cut_off_is_closed_for_the_policy(world: World, lookup: Any):
    end = world.chat.stop_token_ids[0]
    trajectory = played(world, lookup, ["Could you tell me your email, please, and", AgentTurn("Anything else?")])
    (segment,) = trajectory.segments
    first = runs(segment)[0]
    assert end not in first
    at = len(runs(segment, mask=False)[0]) + len(first)
    assert segment.token_ids[at] == end
    assert not segment.loss_mask[at]


def test_a_turn_is_cut_at_its_limit_of_tokens(world: World, lookup: Any):
    trajectory = played(world, lookup, ["What is your email? " * 20, AgentTurn("Anything else?")], max_turn_tokens=12)
    assert len(runs(trajectory.segments[0])[0]) == 12


def test_a_full_context_ends_the_episode_within_it(world: World, lookup: Any):
    trajectory = played(world, lookup, ["<tool_call> " * 8], max_model_len=900, max_errors=1000, max_steps=1000)
    assert trajectory.transcript.stop_reason is StopReason.CONTEXT_FULL
    assert trajectory.transcript.stop_reason.agent_at_fault
    last_sampled = max(at for at, masked in enumerate(trajectory.segments[0].loss_mask) if masked)
    assert last_sampled < 899  # room is left for the token that the engine would sample next


def test_a_malformed_call_is_data(world: World, lookup: Any):
    trajectory = played(world, lookup, ['<tool_call>\n{"name": \n</tool_call><|im_end|>', AgentTurn("Anything else?")])
    failure = trajectory.transcript.messages[2]
    assert failure.parse_failure and "could not be read" in failure.parse_failure
    answer = trajectory.transcript.messages[3]
    assert (answer.role, answer.error) == ("tool", True)
    assert text_of(world, runs(trajectory.segments[0], mask=False)[1]).count(failure.parse_failure) == 1
    assert (trajectory.metrics.calls, trajectory.metrics.well_formed_calls) == (1, 0)
    assert trajectory.transcript.stop_reason is StopReason.USER_STOP


def test_malformed_calls_without_end_are_ended(world: World, lookup: Any):
    trajectory = played(world, lookup, ["<tool_call>nonsense</tool_call><|im_end|>"], max_errors=3)
    assert trajectory.transcript.stop_reason is StopReason.TOO_MANY_ERRORS
    assert trajectory.transcript.parse_failures == 3


def test_one_call_again_and_again_is_a_loop(world: World, lookup: Any):
    trajectory = played(world, lookup, [AgentTurn(actions=(LOOKUP,))], max_errors=100, max_repeats=3)
    assert trajectory.transcript.stop_reason is StopReason.LOOP
    assert trajectory.metrics.calls == 3


def test_an_episode_past_its_deadline_ends_without_blame(world: World, lookup: Any):
    world = replace(world, limits=replace(world.limits, deadline_s=0.5))
    engine = FakeEngine(EngineConfig("fake:"), lambda prompt: world.chat.assistant(AgentTurn("What is your email?")))
    engine.script = FakeScript(latency_s=0.6)
    trajectory = asyncio.run(play(EpisodeRequest(lookup, 0, "test"), world, engine.generate))
    assert trajectory.transcript.stop_reason is StopReason.TIMEOUT
    assert not trajectory.transcript.stop_reason.agent_at_fault
    assert len(engine.requests) == 1


def test_an_engine_s_failure_reaches_the_caller(world: World, lookup: Any):
    engine = FakeEngine(EngineConfig(FakeScript([world.chat.assistant(AgentTurn("What is your email?"))], fail_at=1).model_path))
    with pytest.raises(EngineFailed, match="request 1 fails"):
        asyncio.run(play(EpisodeRequest(lookup, 0, "test"), world, engine.generate))
    assert len(engine.requests) == 2


def test_sampling_is_asked_as_the_request_and_the_limits_say(world: World, lookup: Any):
    seen: list[SamplingParams] = []

    async def generate(token_ids: Sequence[int], params: SamplingParams) -> Generation:
        seen.append(params)
        ids = world.chat.assistant(AgentTurn("What is your email?"))
        return Generation(ids, [0.0] * len(ids), "stop", weight_version=7, cached_tokens=5)

    trajectory = asyncio.run(play(EpisodeRequest(lookup, 11, "grpo", 4, 2, temperature=0.5), world, generate))
    assert {p.temperature for p in seen} == {0.5}
    assert {p.stop_token_ids for p in seen} == {tuple(world.chat.stop_token_ids)}
    assert len({p.seed for p in seen}) == len(seen) > 1  # every turn draws on its own
    assert (trajectory.stage, trajectory.step, trajectory.group, trajectory.seed) == ("grpo", 4, 2, 11)
    assert {version for _, _, version in trajectory.segments[0].versions} == {7}
    assert trajectory.cached_tokens == 5 * len(seen)


def test_the_gate_lets_others_go_on_between_two_that_want_the_processor():
    seen: list[str] = []

    async def works(gate: Gate, name: str) -> None:
        async with gate:
            seen.append(name)

    async def plays() -> None:
        for _ in range(12):
            seen.append(".")
            await asyncio.sleep(0)

    async def all_at_once() -> None:
        gate = Gate()
        workers = [asyncio.create_task(works(gate, name)) for name in "abcd"]
        playing = asyncio.create_task(plays())
        await asyncio.sleep(0)
        workers[0].cancel()  # inside, before its turn
        workers[2].cancel()  # in the queue
        await asyncio.gather(*workers, playing, return_exceptions=True)

    asyncio.run(all_at_once())
    assert [name for name in seen if name != "."] == ["b", "d"]
    assert "." in seen[seen.index("b") : seen.index("d")]


@pytest.mark.parametrize(("last_wave", "first", "then"), [(True, -30, -23), (False, -1_000_030, -1_000_030)])
def test_in_the_last_wave_the_longest_remainder_goes_first_and_before_it_the_longest_whole(
    world: World, lookup: Any, last_wave: bool, first: int, then: int
):
    seen: list[int] = []

    async def generate(token_ids: Sequence[int], params: SamplingParams) -> Generation:
        seen.append(params.priority)
        return Generation([world.chat.stop_token_ids[0]] * 10, [0.0] * 10, "stop")

    request = EpisodeRequest(lookup, 1, "grpo", expected_tokens=30.0, last_wave=last_wave)
    asyncio.run(play(request, world, generate))
    assert seen[:2] == [first, then]
    assert max(seen) <= 0


def test_a_user_who_answers_later_is_awaited(world: World, lookup: Any):
    class LaterUser:
        """The scripted customer behind a coroutine, as a customer played by a language model is."""

        def __init__(self) -> None:
            self._user = world.new_user()

        def reset(self, task: Any, seed: int | None) -> None:
            self._user.reset(task, seed)

        def opening(self) -> str:
            return self._user.opening()

        async def reply(self, message: str) -> Any:
            await asyncio.sleep(0)
            return self._user.reply(message)

    later: Callable[[], Any] = LaterUser
    turns = [AgentTurn("Could you give me your email?"), AgentTurn("Anything else?")]
    assert played(replace(world, new_user=later), lookup, turns).transcript == played(world, lookup, turns).transcript


class FailingUser:
    """A customer whose endpoint is down from its n-th answer on, the opening counted."""

    def __init__(self, answers: int) -> None:
        self.answers = answers

    def reset(self, task: Any, seed: int | None) -> None:
        pass

    def opening(self) -> str:
        return self._answer()

    async def reply(self, message: str) -> Any:
        return UserReply(self._answer())

    def _answer(self) -> str:
        if self.answers == 0:
            raise UserError("the endpoint is down")
        self.answers -= 1
        return "Hello."


@pytest.mark.parametrize(("answers", "said"), [(0, 0), (1, 1), (2, 2)])
def test_a_customer_that_fails_ends_the_episode_without_blame(world: World, lookup: Any, caplog: Any, answers: int, said: int):
    failing: Callable[[], Any] = lambda: FailingUser(answers)  # noqa: E731
    trajectory = played(replace(world, new_user=failing), lookup, [AgentTurn("Could you give me your email?")])
    assert trajectory.transcript.stop_reason is StopReason.USER_ERROR
    assert trajectory.metrics.official_reward == 0.0
    assert len(runs(trajectory.segments[0])) == said
    assert "the endpoint is down" in caplog.text
    assert Trajectory.from_json(json.loads(json.dumps(trajectory.to_json()))).transcript == trajectory.transcript


def test_what_the_customer_used_is_kept_with_the_trajectory(world: World, lookup: Any):
    turns = [AgentTurn("Anything else?")]
    free = played(world, lookup, turns)
    assert free.user_usage == {} and "user_usage" not in free.to_json()
    paid = replace(free, user_usage={"prompt_tokens": 100, "cost_usd": 0.5})
    assert Trajectory.from_json(json.loads(json.dumps(paid.to_json()))).user_usage == paid.user_usage
    assert user_usage([paid, free, paid]) == {"user/prompt_tokens": 200, "user/cost_usd": 1.0}


def test_a_conversation_that_grows_against_its_template_says_so(world: World, lookup: Any):
    plain = played(world, lookup, [AgentTurn("Anything else?")])
    assert not plain.departs and "departs_from_template" not in plain.to_json()
    chat = copy(world.chat)
    chat.departs = True
    departed = played(replace(world, chat=chat), lookup, [AgentTurn("Anything else?")])
    line = json.loads(json.dumps(departed.to_json()))
    assert line["departs_from_template"] is True and Trajectory.from_json(line).departs


def test_a_solo_prompt_has_the_solo_policy_and_all_tools(world: World, packaged_data: Any):
    telecom = load_domain("telecom", packaged_data)
    system, tools = system_prompt(telecom, "official", world.parser, solo=True)
    assert telecom.solo_policy and telecom.solo_policy in system
    assert tools == telecom.solo_tool_schemas
    with pytest.raises(TaudojoError, match=r"set env\.prompt=official"):
        system_prompt(telecom, "compact", world.parser, solo=True)


@pytest.mark.parametrize("style", ["compact", "official"])
@pytest.mark.parametrize("name", ["hermes", "llama3_json", "harmony"])
def test_example_calls_end_the_prompt_in_the_format_of_the_parser(world: World, style: Any, name: str):
    parser = get_parser(name)
    plain, tools = system_prompt(world.domain, style, parser)
    assert system_prompt(world.domain, style, parser, examples=first_examples(world.domain, 0)) == (plain, tools)
    examples = first_examples(world.domain, 2)
    text, same_tools = system_prompt(world.domain, style, parser, examples=examples)
    assert text.startswith(plain) and same_tools == tools
    said = [part.partition("\nYou:\n") for part in text.removeprefix(plain).split("\nUser: ")[1:]]
    assert [(user, parser.parse(call).actions) for user, _, call in said] == [(user, (call,)) for user, call in examples]


def test_the_expert_and_the_policy_read_the_same_examples(world_config: Any, lookup: Any):
    world = build_world(replace(world_config, examples=2))
    system, _ = system_prompt(world.domain, world.style, world.parser, examples=first_examples(world.domain, 2))
    (gold,) = gold_trajectories(world, [lookup])
    sampled = played(world, lookup, [AgentTurn("Anything else?")])
    assert all(text_of(world, runs(t.segments[0], mask=False)[0]).count(system) == 1 for t in (gold, sampled))


@pytest.mark.parametrize("count", [-1, 4])
def test_more_examples_than_the_domain_has_are_refused(world_config: Any, count: int):
    with pytest.raises(TaudojoError, match=rf"env\.examples={count}, and the domain retail has 3 example calls .* 0 … 3"):
        build_world(replace(world_config, examples=count))


def test_an_environment_is_made_for_each_episode(world: World, lookup: Any):
    request = EpisodeRequest(lookup, 0, "test")
    one, other = world.new_env(request), world.new_env(request)
    assert isinstance(one, Env)
    assert one is not other and one.user is not other.user
    assert one.max_steps == world.limits.max_steps
