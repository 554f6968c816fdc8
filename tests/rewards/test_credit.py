"""Credit of turns: values worked out by hand, and the law that they add up to the episode's reward."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.types import Action
from rewards.actions import ActionWeights, action_reward
from rewards.compose import build_reward
from rewards.credit import common, turn_credit, turn_rewards

LOOK = Action("get_order_details", {"order_id": "#W1242543"})
CANCEL = Action("cancel_pending_order", {"order_id": "#W1242543", "reason": "no longer needed"})
CANCEL_OTHER = Action("cancel_pending_order", {"order_id": "#W1242543", "reason": "ordered by mistake"})
RETURN = Action("return_delivered_order_items", {"order_id": "#W2378156", "item_ids": ["1"], "payment_method_id": "x"})
GOLD = (LOOK, CANCEL)
CALLS = (LOOK, CANCEL, CANCEL_OTHER, RETURN, Action("cancel_pending_order", {"order_id": "#W1242543"}), Action("fly"), "broken")


def credits(played, weights: ActionWeights | None = None) -> list[float]:
    return turn_rewards(*played, action_reward(*played, weights).total, weights)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (GOLD, [0.5, 0.5, 0.0]),  # each (1 + 0.5 + 0.5) / (2·2); the last turn says goodbye
        ((), [0.0]),
        ((LOOK, LOOK, CANCEL), [0.5, 0.0, 0.5, 0.0]),  # the second look is an extra read, which is free
        ((CANCEL, LOOK), [0.5, 0.375, 0.0]),  # of two orders the earlier call's counts
        ((LOOK, CANCEL_OTHER), [0.5, 0.375, 0.0]),  # another reason: no 0.5 / 4
        ((LOOK, RETURN, CANCEL), [0.5, -0.075, 0.5, 0.0]),  # a wrong write: −0.3 / 4
        ((LOOK, Action("cancel_pending_order", {"order_id": "#W1242543"})), [0.5, 0.275, 0.0]),  # (1 + 0.5 − 0.4) / 4
    ],
)
def test_a_turn_earns_what_its_call_brought(play, make_task, calls, expected):
    assert credits(play(make_task(GOLD), calls)) == pytest.approx(expected)


def test_a_turn_that_does_not_parse_pays_for_itself(play, make_task):
    weights = ActionWeights(malformed_penalty=-0.4)
    assert credits(play(make_task(GOLD), (LOOK, "<tool_call>{", CANCEL)), weights) == pytest.approx([0.5, -0.1, 0.5, 0.0])


def test_without_gold_actions_the_first_write_loses_what_the_last_turn_earns(play, make_task):
    nobody = make_task(())
    assert credits(play(nobody, (LOOK,))) == pytest.approx([0.0, 1.0])
    # the write: −1, and −0.3 / 2 as a wrong one; action_reward: 0 − 0.15
    assert credits(play(nobody, (LOOK, CANCEL, LOOK))) == pytest.approx([0.0, -1.15, 0.0, 1.0])


def test_what_belongs_to_no_call_comes_with_the_last_turn(play, make_task):
    config = {"actions": {"weight": 0.5, "wrong": -0.1}, "official": {"weight": 0.5}}
    task, transcript, env = play(make_task(GOLD), GOLD)
    total = build_reward(config)(task, transcript, env).total
    assert total == pytest.approx(1.0)
    assert turn_credit(config)(task, transcript, env, total) == pytest.approx([0.25, 0.25, 0.5])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(CALLS), max_size=8), st.sampled_from([GOLD, (CANCEL, CANCEL), ()]))
def test_turns_add_up_to_the_episode_and_only_clipping_and_the_end_are_the_last_one_s(play, make_task, calls, gold):
    weights = ActionWeights(extra_read_penalty=-0.05, malformed_penalty=-0.2)
    played = play(make_task(gold), calls)
    total = action_reward(*played, weights).total
    earned = turn_rewards(*played, total, weights)
    assert len(earned) == len(calls) + 1
    assert sum(earned) == pytest.approx(total)
    if -1.0 < total < 1.0:
        assert earned[-1] == pytest.approx(0.0 if gold else 1.0)


def test_the_calls_in_order_are_as_many_as_the_longest_common_subsequence():
    from rewards.matching import lcs_length

    rng = random.Random(0)
    for _ in range(200):
        gold, calls = ([rng.choice("abc") for _ in range(rng.randint(0, 6))] for _ in range(2))
        found = sorted(common(gold, calls))
        assert len(found) == lcs_length(gold, calls)
        rest = iter(gold)
        assert all(calls[c] in rest for c in found)  # a subsequence of the gold names, in order
