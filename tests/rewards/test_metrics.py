"""Metrics worked out by hand, and the keys and intervals of a block."""

import json

import pytest

from envs.errors import TaudojoError
from envs.types import Action
from rewards.actions import action_reward
from rewards.metrics import METRICS, EpisodeMetrics, block, episode_metrics, paired_difference

LOOK = Action("get_order_details", {"order_id": "#W1242543"})
CANCEL = Action("cancel_pending_order", {"order_id": "#W1242543", "reason": "no longer needed"})
CANCEL_OTHER = Action("cancel_pending_order", {"order_id": "#W1242543", "reason": "ordered by mistake"})


@pytest.fixture
def measure(play, make_task):
    def measure(gold, calls) -> EpisodeMetrics:
        episode = play(make_task(gold), calls)
        return episode_metrics(*episode, action_reward(*episode))

    return measure


def made_up(task_id: str, f1: float = 0.0, *, write: bool = True, match: bool = False, noop: bool = False) -> EpisodeMetrics:
    return EpisodeMetrics(task_id, "cancel", 2, 1, f1, f1, f1, False, write, match, noop, float(match), f1, "user_stop")


def test_the_gold_actions_are_perfect(measure):
    result = measure([LOOK, CANCEL], [LOOK, CANCEL])
    assert (result.precision, result.recall, result.f1, result.well_formed) == (1.0, 1.0, 1.0, 1.0)
    assert result.exact and result.is_write_task and result.db_match and not result.noop_db_match
    assert result.official_reward == result.reward == 1.0 and result.stop_reason == "user_stop"


def test_precision_and_recall_count_equal_calls_once(measure):
    result = measure([LOOK, CANCEL], [LOOK, LOOK, LOOK, CANCEL_OTHER])
    assert (result.precision, result.recall) == (0.25, 0.5)
    assert result.f1 == pytest.approx(1 / 3)
    assert not result.exact and not result.db_match


def test_exact_allows_extra_reads_but_no_extra_write_and_no_other_order(measure):
    assert measure([LOOK, CANCEL], [LOOK, LOOK, CANCEL]).exact
    assert not measure([LOOK, CANCEL], [CANCEL, LOOK]).exact
    assert not measure([LOOK, CANCEL], [LOOK, CANCEL, CANCEL]).exact
    assert not measure([LOOK], [LOOK, CANCEL]).exact


def test_turns_that_did_not_parse_are_attempts_that_were_not_well_formed(measure):
    result = measure([LOOK], [LOOK, "<tool_call>{", Action("get_order_details", {"id": 3})])
    assert (result.calls, result.well_formed_calls) == (3, 1)


def test_silence_is_neither_good_form_nor_precise(measure):
    result = measure([LOOK, CANCEL], [])
    assert (result.calls, result.well_formed, result.precision, result.recall, result.f1) == (0, 0.0, 0.0, 0.0, 0.0)


def test_without_gold_actions_silence_is_right(measure):
    result = measure([], [])
    assert (result.precision, result.recall, result.f1) == (1.0, 1.0, 1.0)
    assert result.exact and result.noop_db_match and not result.is_write_task
    assert measure([], [LOOK]).f1 == 0.0


def test_metrics_survive_json(measure):
    result = measure([LOOK, CANCEL], [LOOK])
    assert EpisodeMetrics.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_a_block_has_the_agreed_keys_and_its_means():
    result = block([made_up("1", 1.0, match=True), made_up("2", 0.5, noop=True), made_up("3", 0.0, write=False, match=True)])
    keys = "n well_formed action_f1 action_exact write_db_match noop_write_db_match official_reward reward ci95"
    assert list(result) == keys.split()
    assert (result["n"], result["action_f1"], result["well_formed"]) == (3, 0.5, 0.5)
    assert (result["write_db_match"], result["noop_write_db_match"]) == (0.5, 0.5)
    assert result["official_reward"] == pytest.approx(2 / 3)
    assert set(result["ci95"]) == set(METRICS)
    json.dumps(result, allow_nan=False)


def test_intervals_contain_the_mean_narrow_with_tasks_and_repeat_exactly():
    few, many = ([made_up(str(i), float(i % 2)) for i in range(n)] for n in (10, 400))
    for episodes in (few, many):
        result = block(episodes)
        low, high = result["ci95"]["action_f1"]
        assert low < result["action_f1"] < high
        assert block(episodes) == result
    low, high = block(many)["ci95"]["action_f1"]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 400**0.5, rel=0.1)


def test_several_episodes_of_one_task_are_not_taken_for_independent():
    alone = [made_up(str(i), float(i % 2)) for i in range(40)]
    low, high = block(alone)["ci95"]["action_f1"]
    low_of_copies, high_of_copies = block(alone * 8)["ci95"]["action_f1"]
    assert high_of_copies - low_of_copies == pytest.approx(high - low)


def test_a_set_without_write_tasks_has_no_database_rate():
    result = block([made_up("1", write=False)])
    assert result["write_db_match"] is None and "write_db_match" not in result["ci95"]
    assert block([])["n"] == 0


def test_a_paired_difference_is_a_minus_b_on_the_same_tasks():
    a = [made_up("1", 1.0), made_up("2", 0.5), made_up("3", 0.9)]
    b = [made_up("3", 0.3), made_up("2", 0.5), made_up("1", 0.4)]
    result = paired_difference(a, b, "action_f1")
    assert result["mean"] == pytest.approx(0.4) and result["n"] == 3
    low, high = result["ci95"]
    assert low <= 0.4 <= high
    with pytest.raises(TaudojoError, match="task 1"):
        paired_difference(a, b[:2], "action_f1")
    with pytest.raises(TaudojoError, match="'f1' is not known"):
        paired_difference(a, b, "f1")
