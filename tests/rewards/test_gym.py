"""The Gymnasium face, checked by Gymnasium."""

import json
import warnings

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from envs.errors import TaudojoError
from envs.types import AgentTurn
from rewards.gym import make, parse_action


@pytest.fixture
def retail_env(retail):
    def build(**kwargs):
        kind = {"source": "path", "path": retail.source.root} if "path" in retail.source.source else {}
        return make("retail", **kind, **kwargs)

    return build


def test_gymnasium_finds_nothing_wrong(retail_env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(retail_env(task_id="0", render_mode="ansi"), skip_render_check=True)


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
