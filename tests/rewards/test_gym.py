"""The Gymnasium face, checked by Gymnasium."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from envs.domain import DOMAINS
from envs.errors import TaudojoError
from envs.types import AgentTurn, StopReason, Task
from envs.users.base import UserReply
from rewards.gym import make, parse_action

ROOT = Path(__file__).parents[2]


@pytest.fixture
def retail_env(where):
    return lambda **settings: make("retail", **where, **settings)


@pytest.mark.parametrize("domain", DOMAINS)
def test_gymnasium_finds_nothing_wrong(where, domain_of, domain):
    task_id = domain_of(domain).tasks("base")[0].id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(domain, task_id=task_id, render_mode="ansi", **where), skip_render_check=True)


@pytest.mark.parametrize("domain", ["mock", "telecom"])
def test_gymnasium_finds_nothing_wrong_without_a_customer(where, domain_of, domain):
    tasks = domain_of(domain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make(domain, task_id=next(t.id for t in tasks.tasks("base") if t.ticket), user="solo", **where)
        check_env(env, skip_render_check=True)
    _, info = env.reset()
    assert info["policy"] == tasks.solo_policy and info["tools"] == tasks.solo_tool_schemas


@pytest.mark.parametrize("domain", DOMAINS)
def test_gymnasium_makes_every_domain_by_its_id_and_checks_it(where, domain_of, domain):
    env = gymnasium.make(f"taudojo/{domain}-v0", task_id=domain_of(domain).tasks("base")[0].id, **where)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    observation, info = env.reset(seed=3)
    assert observation.startswith("assistant: Hi!") and info["domain"] == domain


@pytest.mark.parametrize("module", ["rewards", "rewards.gym", "envs.registration"])
def test_a_fresh_python_knows_the_ids_once_a_module_is_named(module):
    ids = [f"taudojo/{name}-v0" for name in DOMAINS]
    for first in (f"import {module}", f"gymnasium.make('{module}:taudojo/mock-v0')"):
        script = f"import gymnasium; {first}; print(*(gymnasium.spec(name).id for name in {ids}))"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.split() == ids, done.stderr


def test_the_gold_calls_are_worth_one_at_the_end(retail_env, retail):
    task = retail.tasks("base")[0]
    env = retail_env(task_id=task.id)
    observation, info = env.reset(seed=1)
    assert "assistant: Hi! How can I help you today?" in observation and info["policy"] == retail.policy
    for action in task.gold_actions:
        observation, reward, terminated, truncated, info = env.step(json.dumps(action.to_json()))
        assert observation.startswith("tool: ") and (reward, terminated, truncated) == (0.0, False, False)
    while not (terminated or truncated):
        observation, reward, terminated, truncated, info = env.step("All is done. Is there anything else?")
    assert terminated and reward == 1.0 and info["reward_components"]["db"] == 1.0
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("Hello?")


def test_info_never_shows_the_gold_actions(retail_env, retail):
    task = next(t for t in retail.tasks("base") if any(a.name.startswith("exchange") for a in t.gold_actions))
    env = retail_env(task_id=task.id, max_steps=2)
    _, info = env.reset(seed=0)
    seen = [info]
    for _ in range(2):
        *_, truncated, info = env.step("{}")
        seen.append(info)
    assert truncated
    shown = json.dumps(seen)
    for item in next(a for a in task.gold_actions if a.name.startswith("exchange")).arguments["new_item_ids"]:
        assert item not in shown


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_info_has_a_call_of_the_reference_solution(where, domain_of, domain):
    """`info` may tell what was written, but not what should be."""
    for task in domain_of(domain).tasks("base")[:20]:
        env = make(domain, task_id=task.id, max_steps=2, **where)
        seen = [env.reset(seed=0)[1]]
        while not (seen[-1]["stop_reason"]):
            seen.append(env.step("{}")[-1])
        # The policy and the tools are the same for every task, the id is its name.
        shown = json.dumps([{k: v for k, v in info.items() if k not in ("policy", "tools", "task_id")} for info in seen])
        for action in task.gold_actions:
            for value in action.arguments.values():
                assert isinstance(value, bool) or len(str(value)) < 4 or str(value) not in shown, task.id
        assert not {"task", "evaluation_criteria", "actions"} & {key for info in seen for key in info}


def test_handed_out_tools_may_be_changed(retail_env):
    env = retail_env(task_id="0")
    env.reset()[1]["tools"].clear()
    assert len(env.reset()[1]["tools"]) == 16


class Hasty:
    """Hangs up before the agent's first turn, or a turn later."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def reset(self, task: Task, seed: int | None) -> None:
        pass

    def opening(self) -> UserReply:
        return self.reply("")

    def reply(self, message: str) -> UserReply:
        self.turns -= 1
        return UserReply("Hello.", StopReason.USER_STOP if self.turns < 0 else None)


def test_an_episode_that_the_customer_leaves_at_once_ends_with_the_first_step(retail_env):
    env = retail_env(task_id="0", user=Hasty(0))
    _, info = env.reset()
    assert info["stop_reason"] == "user_stop"
    observation, reward, terminated, truncated, info = env.step("Hello?")
    assert (observation, reward, terminated, truncated) == ("", 0.0, True, False) and "reward_components" in info
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("Hello?")


def test_a_user_of_ones_own_is_copied_for_every_episode(retail_env):
    env = retail_env(task_id="0", user=Hasty(1))
    for _ in range(2):
        assert env.reset()[1]["stop_reason"] is None
        assert env.step("Hello?")[2]


def test_users_are_chosen_by_name(retail_env):
    left = retail_env(task_id="0", user="noisy", user_settings={"early_stop_rate": 1.0})
    left.reset(seed=1)
    assert left.step("Hello?")[2]
    with pytest.raises(TaudojoError, match=r"user\.name=nobody"):
        retail_env(user="nobody")


def test_a_seed_draws_the_same_task_again(retail_env):
    env = retail_env(split="test")
    drawn = [env.reset(seed=seed)[1]["task_id"] for seed in (1, 2, 3, 1, 2, 3)]
    assert drawn[:3] == drawn[3:] and len(set(drawn)) > 1
    assert env.reset(seed=1, options={"task_id": drawn[1]})[1]["task_id"] == drawn[1]
    with pytest.raises(TaudojoError, match="'none'"):
        env.reset(options={"task_id": "none"})


def test_an_unknown_task_is_a_clear_error(retail_env):
    with pytest.raises(TaudojoError, match="has no task 'x'"):
        retail_env(task_id="x")


def test_actions_are_calls_speech_or_parse_failures():
    call = '{"name": "calculate", "arguments": {"expression": "1 + 1"}}'
    assert parse_action(call).actions[0].arguments == {"expression": "1 + 1"}
    assert len(parse_action(f"[{call}, {call}]").actions) == 2
    wrapped = json.dumps(
        {"tool_calls": [{"type": "function", "function": {"name": "calculate", "arguments": '{"expression": "2"}'}}]}
    )
    assert parse_action(wrapped).actions[0].arguments == {"expression": "2"}
    assert parse_action("Hello {you}") == AgentTurn(content="Hello {you}")
    for broken in ('{"name": "x"', '{"arguments": {}}', '{"name": 3}', '{"name": "x", "arguments": [1]}', "{" * 100_000):
        assert parse_action(broken).parse_failure
