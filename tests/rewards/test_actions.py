"""The action reward: values worked out by hand, and laws that hold for any calls."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.errors import TaudojoError
from envs.types import Action
from rewards.actions import ActionWeights, action_reward

LOOK = Action("get_order_details", {"order_id": "#W1242543"})
CANCEL = Action("cancel_pending_order", {"order_id": "#W1242543", "reason": "no longer needed"})
CANCEL_OTHER = Action("cancel_pending_order", {"order_id": "#W1242543", "reason": "ordered by mistake"})
RETURN = Action("return_delivered_order_items", {"order_id": "#W2378156", "item_ids": ["1"], "payment_method_id": "x"})
GOLD = (LOOK, CANCEL)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (GOLD, 1.0),  # (2 names + 2·0.5 + 2·0.5) / (2·2)
        ((), 0.0),
        ((LOOK,), 0.5),  # (1 + 0.5 + 0.5) / 4
        ((CANCEL, LOOK), 0.875),  # order: LCS 1 of 2 -> (2 + 1 + 0.5) / 4
        ((LOOK, CANCEL_OTHER), 0.875),  # one argument set wrong -> (2 + 0.5 + 1) / 4
        ((LOOK, CANCEL, RETURN), 0.925),  # a write that nobody wanted -> (4 - 0.3) / 4
        ((LOOK, CANCEL_OTHER, CANCEL), 0.925),  # the second cancellation has no partner left
        ((LOOK, CANCEL, Action("fly_to_the_moon")), 0.925),
        ((LOOK, Action("cancel_pending_order", {"order_id": "#W1242543"})), 0.775),  # (2 + 0.5 + 1 - 0.4) / 4
        ((LOOK, LOOK, LOOK, CANCEL), 1.0),  # extra reads are free by default
        ((RETURN, RETURN), -0.15),  # -0.6 / 4
        ((RETURN,) * 30, -1.0),  # -9 / 4, clipped
    ],
)
def test_values_worked_out_by_hand(play, make_task, calls, expected):
    assert action_reward(*play(make_task(GOLD), calls)).total == pytest.approx(expected)


def test_the_total_is_the_weighted_sum_of_the_named_parts_over_its_maximum(play, make_task):
    weights = ActionWeights(extra_read_penalty=-0.1, malformed_penalty=-0.2, unofficial_stop_penalty=-1.0)
    result = action_reward(*play(make_task(GOLD), (LOOK, LOOK, "<tool_call>{", CANCEL)), weights)
    assert {c.name: c.value for c in result.components} == {
        "name": 1.0,
        "arguments": 1.0,
        "order": 1.0,
        "wrong": 0.0,
        "missing": 0.0,
        "extra_read": 0.5,
        "malformed": 0.5,
        "unofficial_stop": 0.0,
    }
    assert result.total == pytest.approx((2.0 - 0.05 - 0.1) / 2.0)


def test_an_ending_that_the_benchmark_does_not_score_costs_its_penalty(retail, make_task, play):
    from envs.env import Env
    from envs.types import AgentTurn, StopReason

    task, _, finished = play(make_task(GOLD), GOLD)
    env = Env(retail, task, finished.user, max_repeats=3)
    env.reset()
    for call in (*GOLD, LOOK, LOOK, LOOK):
        env.step(AgentTurn(actions=(call,)))
    assert env.stop_reason is StopReason.LOOP
    assert action_reward(task, env.transcript, env, ActionWeights(unofficial_stop_penalty=-0.5)).total == pytest.approx(0.75)


def test_without_gold_actions_the_reward_is_one_if_and_only_if_nothing_was_written(play, make_task):
    nobody = make_task(())
    assert action_reward(*play(nobody, ())).total == 1.0
    assert action_reward(*play(nobody, (LOOK, Action("fly_to_the_moon")))).total == 1.0
    refused = Action("cancel_pending_order", {"order_id": "#W0", "reason": "no longer needed"})
    assert action_reward(*play(nobody, (refused,))).total == 1.0
    assert action_reward(*play(nobody, (CANCEL,))).total == pytest.approx(-0.15)


def test_a_gold_action_that_lacks_an_argument_is_not_held_against_the_agent_that_plays_it(play, make_task):
    gold = (LOOK, Action("cancel_pending_order", {"order_id": "#W1242543"}))
    assert action_reward(*play(make_task(gold), gold)).total == 1.0


def test_weights_with_the_wrong_sign_are_refused():
    with pytest.raises(TaudojoError, match=r"wrong is 0\.3; it costs"):
        ActionWeights(wrong=0.3)
    with pytest.raises(TaudojoError, match="name is -1; it earns"):
        ActionWeights(name=-1)
    with pytest.raises(TaudojoError, match="nothing to earn"):
        ActionWeights(0.0, 0.0, 0.0)
    with pytest.raises(TaudojoError, match="wrong is nan"):
        ActionWeights(wrong=float("nan"))


scalars = st.one_of(st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.none())
junk = st.dictionaries(
    st.sampled_from(["order_id", "item_ids", "new_item_ids", "reason"]), st.one_of(scalars, st.lists(scalars, max_size=3))
)
names = st.sampled_from(["get_order_details", "cancel_pending_order", "modify_pending_order_items", "calculate", "no_such_tool"])
plausible = st.sampled_from([LOOK, CANCEL, CANCEL_OTHER, RETURN, Action("list_all_product_types", {})])
actions = st.one_of(plausible, st.builds(Action, names, junk))
some_weights = st.builds(
    ActionWeights,
    name=st.floats(0.1, 2),
    arguments=st.floats(0, 2),
    order=st.floats(0, 2),
    wrong=st.floats(-2, 0),
    missing=st.floats(-2, 0),
    extra_read_penalty=st.floats(-1, 0),
)
quick = settings(max_examples=150, deadline=None)


@quick
@given(gold=st.lists(actions, max_size=5), calls=st.lists(actions, max_size=8), weights=some_weights)
def test_the_reward_is_bounded(play, make_task, gold, calls, weights):
    assert -1.0 <= action_reward(*play(make_task(gold), calls), weights).total <= 1.0


@quick
@given(gold=st.lists(actions, min_size=1, max_size=6), weights=some_weights)
def test_the_gold_actions_score_the_maximum(play, make_task, gold, weights):
    assert action_reward(*play(make_task(gold), gold), weights).total == pytest.approx(1.0)


@quick
@given(gold=st.lists(actions, min_size=1, max_size=6), weights=some_weights, data=st.data())
def test_dropping_or_corrupting_a_gold_action_never_raises_the_reward(play, make_task, gold, weights, data):
    at = data.draw(st.integers(0, len(gold) - 1))
    best = action_reward(*play(make_task(gold), gold), weights).total
    dropped = gold[:at] + gold[at + 1 :]
    corrupted = [*gold[:at], data.draw(actions), *gold[at + 1 :]]
    assert action_reward(*play(make_task(gold), dropped), weights).total <= best + 1e-9
    assert action_reward(*play(make_task(gold), corrupted), weights).total <= best + 1e-9


@quick
@given(gold=st.lists(plausible, min_size=1, max_size=4), calls=st.lists(actions, max_size=6), data=st.data())
def test_losing_the_arguments_of_a_right_call_lowers_the_reward_whatever_surrounds_it(play, make_task, gold, calls, data):
    at = data.draw(st.integers(0, len(calls)))
    spoiled = Action(gold[0].name, {**gold[0].arguments, "surplus": 1})
    others = [c for c in calls if c != gold[0]]
    right = action_reward(*play(make_task(gold), [*others[:at], gold[0], *others[at:]])).total
    wrong = action_reward(*play(make_task(gold), [*others[:at], spoiled, *others[at:]])).total
    assert wrong < right or right == -1.0


@quick
@given(call=st.builds(Action, names, junk))
def test_the_order_of_dictionary_keys_is_irrelevant(play, make_task, call):
    turned = Action(call.name, dict(reversed(call.arguments.items())))
    assert action_reward(*play(make_task([call]), [turned])).total == 1.0
