"""The official score, against the official implementation's own answers and by hand."""

import gzip
import json
from pathlib import Path

import pytest

from envs.env import Env
from envs.errors import TaudojoError
from envs.types import Action, AgentTurn, StopReason, Task
from rewards.matching import GoldAction
from rewards.tau2 import actions_match, do_nothing_matches, gold_state, official_reward, replay

CONFORMANCE = Path(__file__).parents[3] / "shared" / "conformance" / "retail.jsonl.gz"
CANCEL = Action("cancel_pending_order", {"order_id": "#W1242543", "reason": "no longer needed"})


@pytest.mark.skipif(not CONFORMANCE.exists(), reason="recorded official trajectories are not here")
def test_every_recorded_trajectory_gets_the_official_verdicts(retail, play):
    tasks = {task.id: task for task in retail.tasks("base")}
    with gzip.open(CONFORMANCE, "rt", encoding="utf-8") as lines:
        recorded = [json.loads(line) for line in lines]
    assert len(recorded) > 400
    differences = []
    for row in recorded:
        task, transcript, env = play(tasks[row["task_id"]], [Action.from_json(c) for c in row["calls"]], row["say"])
        score = official_reward(task, transcript, env)
        ours = {
            "reward": score.total,
            "db_match": bool(score.value("db")),
            "action": score.value("action"),
            "communicate": score.value("communicate"),
            "replayed": replay((a for a in transcript.calls if a.name in retail.write_tools), retail).db_hash(),
            "gold": gold_state(task, retail).db_hash(),
            "errors": [m.error for m in transcript.messages if m.role == "tool"],
        }
        theirs = {
            "reward": row["reward_llm_free"],
            "db_match": row["db_match"],
            "action": row["action_reward"],
            "communicate": row["communicate_reward"],
            "replayed": row["evaluator_db_hash"],
            "gold": row["gold_db_hash"],
            "errors": [c["error"] for c in row["calls"]],
        }
        differences += [(row["task_id"], row["kind"], k, ours[k], theirs[k]) for k in ours if ours[k] != theirs[k]]
    assert differences == []


def test_the_gold_actions_of_every_official_task_score_one(retail, play):
    for task in retail.tasks("base"):
        score = official_reward(*play(task, task.gold_actions, say=" ".join(task.communicate_info) or "Done."))
        assert score.total == 1.0, task.id


def test_a_stop_that_the_benchmark_does_not_know_scores_zero(retail, play, make_task):
    task, transcript, finished = play(make_task([CANCEL]), [CANCEL])
    assert official_reward(task, transcript, finished).total == 1.0
    env = Env(retail, task, finished.user)
    env.reset()
    env.step(AgentTurn(actions=(CANCEL,)))
    assert official_reward(task, env.transcript, env).total == 0.0
    env.interrupt(StopReason.MAX_STEPS)
    score = official_reward(task, env.transcript, env)
    assert score.total == 0.0 and score.value("db") == 1.0 and score.value("termination") == 0.0


def test_only_the_parts_in_the_basis_count(play, make_task):
    silent = make_task([CANCEL], communicate_info=["42"], reward_basis=["DB", "NL_ASSERTION"])
    score = official_reward(*play(silent, [CANCEL]))
    assert score.total == 1.0 and score.value("communicate") == 0.0
    assert {c.name: c.weight for c in score.components} == {"termination": 1.0, "db": 1.0, "communicate": 0.0, "action": 0.0}
    assert official_reward(*play(make_task([CANCEL], communicate_info=["42"]), [CANCEL])).total == 0.0


def test_commas_are_removed_from_the_message_only(play, make_task):
    def said(info: str, text: str) -> float:
        return official_reward(*play(make_task([], communicate_info=[info]), [], say=text)).value("communicate")

    assert said("1234.5", "That is $1,234.5 in all.") == 1.0
    assert said("1,234.5", "That is $1,234.5 in all.") == 0.0
    assert said("POLYester", "It is made of polyester.") == 1.0


def test_words_in_a_turn_that_did_not_parse_were_not_heard(play, make_task):
    assert official_reward(*play(make_task([], communicate_info=["42"]), ["42 <tool_call>{"])).value("communicate") == 0.0


def test_the_action_check_forgives_what_the_call_leaves_out_but_nothing_that_it_adds():
    gold = (GoldAction(CANCEL),)
    assert actions_match(gold, [Action(CANCEL.name, {"order_id": "#W1242543"})])
    assert actions_match(gold, [Action(CANCEL.name, {})])
    assert not actions_match(gold, [Action(CANCEL.name, {**CANCEL.arguments, "note": 1})])
    assert actions_match((GoldAction(CANCEL, ()),), [Action(CANCEL.name, {"order_id": "#W0"})])
    assert actions_match((GoldAction(CANCEL), GoldAction(CANCEL)), [Action(CANCEL.name, CANCEL.arguments, "user")])


def test_doing_nothing_passes_the_tasks_that_write_nothing(retail, make_task):
    assert do_nothing_matches(make_task([Action("get_order_details", {"order_id": "#W1242543"})], "reads"), retail)
    assert not do_nothing_matches(make_task([CANCEL], "writes"), retail)
    passed = [task.id for task in retail.tasks("base") if do_nothing_matches(task, retail)]
    assert len(passed) == (11 if retail.source.version == "v1.0.1" else len(passed))


def test_two_tasks_of_the_same_id_have_their_own_gold_states(retail, make_task):
    assert not do_nothing_matches(make_task([CANCEL], "same"), retail)
    assert do_nothing_matches(make_task([], "same"), retail)


def test_a_task_without_criteria_asks_for_a_good_ending_only(play, make_task):
    task = make_task([CANCEL])
    free = Task("retail", {**task.raw, "evaluation_criteria": None})
    assert official_reward(*play(free, [])).total == 1.0


def test_a_basis_that_cannot_be_evaluated_is_an_error(play, make_task):
    with pytest.raises(TaudojoError, match="ENV_ASSERTION"):
        official_reward(*play(make_task([CANCEL], reward_basis=["ENV_ASSERTION"]), []))
