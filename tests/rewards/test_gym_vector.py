"""Many episodes at once: each is what it would be alone, and the next one follows as the autoreset mode says."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

import rewards  # noqa: F401 (makes the ids known)
from envs.domain import DOMAINS
from rewards.gym import make

BYE = "All is done. Is there anything else?"


def made(domain: str, num_envs: int, where: dict, **settings: object) -> VectorEnv:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return gymnasium.make_vec(f"taudojo/{domain}-v0", num_envs=num_envs, **where, **settings)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_episode_is_what_it_would_be_alone(where, domain):
    envs = made(domain, 5, where)
    alone = [make(domain, **where) for _ in range(5)]
    observations, infos = envs.reset(seed=11)
    expected = [env.reset(seed=11 + i) for i, env in enumerate(alone)]
    assert list(observations) == [observation for observation, _ in expected]
    assert list(infos["task_id"]) == [info["task_id"] for _, info in expected]
    actions = ["Could you give me your email?", "{}", '{"name": "no_such_tool", "arguments": {}}', "Hello.", "Why?"]
    observations, scores, terminations, truncations, infos = envs.step(actions)
    expected = [env.step(action) for env, action in zip(alone, actions, strict=True)]
    assert list(observations) == [step[0] for step in expected]
    assert list(scores) == [step[1] for step in expected] and scores.shape == (5,)
    assert list(terminations) == [step[2] for step in expected] and list(truncations) == [step[3] for step in expected]
    assert observations in envs.observation_space and tuple(actions) in envs.action_space
    envs.close()


def test_the_same_seed_plays_the_same_episodes_again(where):
    envs = made("mock", 4, where)
    rounds = []
    for _ in range(2):
        drawn = [envs.reset(seed=5)[1]["task_id"]]
        for _ in range(12):
            drawn.append(envs.step(["Hi?"] * 4)[-1]["task_id"])
        rounds.append(np.array(drawn))
    assert (rounds[0] == rounds[1]).all() and len(set(rounds[0].flat)) > 2
    assert (envs.reset(seed=[9, 9, 1, 1])[1]["task_id"][::2] == envs.reset(seed=[9, 9, 1, 1])[1]["task_id"][1::2]).all()


def test_a_write_stays_in_its_episode(where):
    envs = made("mock", 2, where, task_id="create_task_1")
    envs.reset()
    call = {"name": "create_task", "arguments": {"user_id": "user_1", "title": "Important Meeting"}}
    envs.step([json.dumps(call), '{"name": "get_users"}'])
    _, scores, terminations, _, infos = envs.step([BYE, BYE])
    assert terminations.all() and list(scores) == [1.0, 0.0]
    assert list(infos["reward_components"]["db"]) == [1.0, 0.0]


def test_by_default_the_step_after_the_end_resets_and_ignores_the_action(where):
    envs = made("mock", 2, where, task_id="create_task_1")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    first, _ = envs.reset(seed=0)
    _, _, terminations, _, _ = envs.step([BYE, '{"name": "get_users"}'])
    assert list(terminations) == [True, False]
    observations, scores, terminations, _, infos = envs.step(["ignored", BYE])
    assert observations[0] == first[0] and list(terminations) == [False, True] and scores[0] == 0.0
    assert infos["policy"][0] and not infos["_policy"][1]


def test_in_the_same_step_mode_the_last_observation_is_in_the_info(where):
    envs = made("mock", 2, where, task_id="create_task_1", autoreset_mode="SameStep")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    first, _ = envs.reset(seed=0)
    observations, _, terminations, _, infos = envs.step([BYE, '{"name": "get_users"}'])
    assert list(terminations) == [True, False] and observations[0] == first[0]
    assert infos["final_obs"][0].startswith("user: That is all") and infos["final_info"]["stop_reason"][0] == "user_stop"


def test_without_autoreset_chosen_environments_are_reset(where):
    envs = made("mock", 2, where, task_id="create_task_1", autoreset_mode=AutoresetMode.DISABLED)
    first, _ = envs.reset(seed=0)
    envs.step([BYE, '{"name": "get_users"}'])
    observations, _ = envs.reset(options={"reset_mask": np.array([True, False])})
    assert observations[0] == first[0] and observations[1].startswith("tool: ")


def test_gymnasium_s_own_vector_forms_take_the_environments_too(where):
    envs = made("mock", 2, where, vectorization_mode="sync", task_id="create_task_1")
    observations, _ = envs.reset(seed=0)
    assert len(observations) == 2 and observations[0].startswith("assistant: Hi!")
    envs.step([BYE, BYE])
    envs.close()


def test_no_info_shows_the_gold_actions(where, retail):
    task = next(t for t in retail.tasks("base") if any(a.name.startswith("exchange") for a in t.gold_actions))
    envs = made("retail", 2, where, task_id=task.id, max_steps=2)
    seen = [envs.reset(seed=0)[1]]
    seen += [envs.step(["{}", "{}"])[-1] for _ in range(3)]
    shown = repr(seen)
    for item in next(a for a in task.gold_actions if a.name.startswith("exchange")).arguments["new_item_ids"]:
        assert item not in shown


def test_a_hundred_environments_in_one_process_end_as_they_should(where):
    envs = made("retail", 100, where, split="test")
    envs.reset(seed=0)
    ended = np.zeros(100, bool)
    for _ in range(4):
        _, _, terminations, truncations, _ = envs.step(["Good bye."] * 100)
        ended |= terminations | truncations
    assert ended.all()
