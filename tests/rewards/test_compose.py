"""Mixing rewards by weight."""

import pytest

from envs.errors import TaudojoError
from envs.types import Action
from rewards.breakdown import Component, RewardBreakdown
from rewards.compose import build_reward

LOOK = Action("get_order_details", {"order_id": "#W1242543"})
CANCEL = Action("cancel_pending_order", {"order_id": "#W1242543", "reason": "no longer needed"})


def test_the_total_is_the_weighted_sum_and_zero_weights_are_still_reported(play, make_task):
    reward = build_reward({"actions": {"weight": 0.5}, "official": {"weight": 0.0}})
    result = reward(*play(make_task([LOOK, CANCEL]), [LOOK]))
    assert result.total == 0.25
    assert result.value("actions") == 0.5 and result.value("official") == 0.0
    assert result.value("actions/name") == 0.5 and result.value("official/db") == 0.0


def test_weights_of_the_action_reward_come_from_the_configuration(play, make_task):
    episode = play(make_task([LOOK, CANCEL]), [LOOK, CANCEL, Action("fly_to_the_moon")])
    assert build_reward({"actions": {"weight": 1, "wrong": -2}})(*episode).total == 0.5


def test_both_parts_can_count(play, make_task):
    reward = build_reward({"actions": {"weight": 1.0}, "official": {"weight": 2.0}})
    assert reward(*play(make_task([LOOK, CANCEL]), [LOOK, CANCEL])).total == 3.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"action": {"weight": 1}}, "reward.action is not known; did you mean reward.actions"),
        ({"actions": {"weight": 1, "wrnog": -1}}, "reward.actions.wrnog is not known; did you mean reward.actions.wrong"),
        ({"official": {"weight": 1, "name": 1}}, "reward.official.name is not known; it takes no settings"),
        ({"actions": {}}, "reward.actions needs a weight"),
        ({"actions": 1.0}, "reward.actions needs a weight"),
        ({"actions": {"weight": "high"}}, "reward.actions.weight is 'high'"),
        ({}, "names no reward"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_clear_sentence(config, message):
    with pytest.raises(TaudojoError, match=message):
        build_reward(config)


def test_a_breakdown_survives_json():
    breakdown = RewardBreakdown.of(Component("a", 0.5, 2.0), Component("b", 1.0, -0.25))
    assert breakdown.total == 0.75
    assert RewardBreakdown.from_json(breakdown.to_json()) == breakdown
    with pytest.raises(KeyError, match="there are"):
        breakdown.value("c")
