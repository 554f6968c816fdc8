"""The official score by hand; `test_replay.py` holds it against the official implementation's own answers."""

import json
from dataclasses import replace

import pytest

from envs.env import Env
from envs.errors import TaudojoError
from envs.types import Action, AgentTurn, StopReason, Task
from rewards import tau2
from rewards.matching import GoldAction, played
from rewards.playback import play_calls
from rewards.tau2 import actions_match, do_nothing_matches, evaluate, gold_state, official_reward, replay

CANCEL = Action("cancel_pending_order", {"order_id": "#W1242543", "reason": "no longer needed"})


@pytest.fixture
def mock(domain_of):
    return domain_of("mock")


def a_task(domain, task_id: str, **criteria) -> Task:
    task = next(t for t in domain.all_tasks if t.id == task_id)
    return replace(task, raw={**task.raw, "evaluation_criteria": {**task.criteria, **criteria}})


def scored(task, domain, *calls: Action, say: str = "Done."):
    transcript, _ = play_calls(task, domain, calls, say)
    return evaluate(task, transcript, domain)


@pytest.mark.parametrize("name", ["retail", "airline", "telecom"])
def test_the_gold_actions_of_every_official_task_score_one(domain_of, name):
    domain = domain_of(name)
    for task in domain.tasks("base"):
        transcript, _ = play_calls(task, domain, task.gold_actions, " ".join(task.communicate_info) or "Done.")
        assert evaluate(task, transcript, domain).reward == 1.0, task.id


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
    assert {c.name: c.weight for c in score.components} == {
        "termination": 1.0,
        "db": 1.0,
        "env_assertion": 0.0,
        "communicate": 0.0,
        "action": 0.0,
    }
    assert official_reward(*play(make_task([CANCEL], communicate_info=["42"]), [CANCEL])).total == 0.0
    assert official_reward(*play(make_task([CANCEL], reward_basis=[]), [])).total == 1.0  # an empty basis asks for nothing


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
    if retail.source.version == "tau2-bench v1.0.1":
        assert sum(do_nothing_matches(task, retail) for task in retail.tasks("base")) == 11


def test_two_tasks_of_the_same_id_have_their_own_gold_states(retail, make_task):
    assert not do_nothing_matches(make_task([CANCEL], "same"), retail)
    assert do_nothing_matches(make_task([], "same"), retail)


def test_no_more_than_so_many_gold_states_are_kept_the_oldest_go_first(mock, monkeypatch):
    monkeypatch.setattr(tau2, "_KEPT_STATES", 2)
    tau2._gold_states.pop(mock, None)
    tasks = [replace(task, raw={**task.raw, "id": f"copy {n}"}) for n, task in enumerate([a_task(mock, "create_task_1")] * 3)]
    first, second = gold_state(tasks[0], mock), gold_state(tasks[1], mock)
    assert gold_state(tasks[0], mock) is first and gold_state(tasks[1], mock) is second
    gold_state(tasks[2], mock)
    assert list(tau2._gold_states[mock]) == ["copy 1", "copy 2"]
    assert gold_state(tasks[0], mock) is not first and gold_state(tasks[0], mock).same_state(first)
    changed = a_task(mock, "create_task_1", actions=[])
    gold_state(replace(changed, raw={**changed.raw, "id": "copy 2"}), mock)
    assert list(tau2._gold_states[mock]) == ["copy 0", "copy 2"]


def test_a_task_without_criteria_asks_for_a_good_ending_only(play, make_task):
    task = make_task([CANCEL])
    free = Task("retail", {**task.raw, "evaluation_criteria": None})
    assert official_reward(*play(free, [])).total == 1.0


def test_a_basis_that_cannot_be_evaluated_is_an_error(play, make_task):
    with pytest.raises(TaudojoError, match="is scored by VIBES"):
        official_reward(*play(make_task([CANCEL], reward_basis=["VIBES"]), []))


# -- initial states, assertions, both databases

CREATE = Action("create_task", {"user_id": "user_1", "title": "Important Meeting"})
COMPLETE = Action("update_task_status", {"task_id": "task_2", "status": "completed"})


@pytest.mark.parametrize("kind", ["message_history", "initialization_data", "initialization_actions"])
def test_an_episode_begins_with_the_task_s_initial_state(mock, kind):
    task = a_task(mock, f"update_task_with_{kind}", reward_basis=["DB"])
    assert scored(task, mock, COMPLETE).reward == 1.0
    assert scored(task, mock).reward == 0.0
    assert gold_state(task, mock).db_hash() != mock.new_toolkit(task).db_hash() != mock.new_toolkit().db_hash()


def test_calls_and_words_of_the_history_count_for_the_official_score_and_for_nothing_else(mock):
    task = a_task(mock, "update_task_with_message_history", reward_basis=["ACTION", "COMMUNICATE"], communicate_info=["TITLED"])
    create = {"action_id": "0", "name": "create_task", "arguments": {"user_id": "user_1"}, "compare_args": ["user_id"]}
    both = a_task(mock, task.id, reward_basis=["ACTION", "COMMUNICATE"], communicate_info=["TITLED"], actions=[create])
    verdict = scored(both, mock, say="")
    assert verdict.parts["action"] and verdict.parts["communicate"] and verdict.reward == 1.0
    transcript, _ = play_calls(task, mock, [COMPLETE])
    assert [m.action for m in played(task, transcript) if m.role == "tool"] == [COMPLETE]


def test_environment_assertions_are_part_of_the_product(mock):
    task = a_task(mock, "create_task_1_with_env_assertions")
    assert scored(task, mock, CREATE).reward == 1.0
    done = scored(task, mock, CREATE, COMPLETE)
    assert done.reward == 0.0 and not done.parts["env_assertion"]
    alone = a_task(mock, task.id, actions=None, reward_basis=["ENV_ASSERTION"])
    assert scored(alone, mock, CREATE).reward == 1.0


def test_an_assertion_about_a_row_that_is_not_there_has_no_official_score_and_is_worth_nothing(mock):
    task = a_task(mock, "create_task_1_with_env_assertions")
    verdict = scored(task, mock)
    assert verdict.reward is None and verdict.error == "ValueError: Task task_2 not found"
    breakdown = verdict.breakdown()
    assert breakdown.total == 0.0 and breakdown.value("evaluator_error") == 1.0
    transcript, _ = play_calls(task, mock, (), stop=StopReason.MAX_STEPS)
    assert evaluate(task, transcript, mock).reward == 0.0  # an early end is not looked at


def test_the_customer_s_database_must_match_too(mock):
    task = a_task(mock, "update_task_with_user_tools", reward_basis=["DB"])
    complete = Action("update_task_status", {"task_id": "task_1", "status": "completed"})
    dismiss = Action("dismiss_notification", {"notification_id": "notif_1"}, "user")
    assert scored(task, mock, complete).reward == 1.0
    assert scored(task, mock, complete, dismiss).reward == 0.0


def test_an_answer_that_was_not_recorded_so_makes_the_evaluator_raise(mock):
    task = a_task(mock, "create_task_1")
    transcript, _ = play_calls(task, mock, [CREATE])
    forged = tuple(replace(m, content='{"task_id": "task_9"}') if m.role == "tool" else m for m in transcript.messages)
    verdict = evaluate(task, replace(transcript, messages=forged), mock)
    assert verdict.reward is None and "recorded was" in verdict.error
    spaced = tuple(
        replace(m, content=json.dumps(json.loads(m.content), indent=1)) if m.role == "tool" else m for m in transcript.messages
    )
    assert evaluate(task, replace(transcript, messages=spaced), mock).reward == 1.0  # only the JSON counts


def test_a_task_s_gold_actions_that_fail_are_passed_over(mock):
    broken = {"action_id": "0", "name": "update_task_status", "arguments": {"task_id": "task_9", "status": "completed"}}
    unknown = {"action_id": "1", "name": "no_such_tool", "arguments": {}}
    create = {"action_id": "2", **CREATE.to_json()}
    task = a_task(mock, "create_task_1", actions=[broken, unknown, create], reward_basis=["DB"])
    assert scored(task, mock, CREATE).reward == 1.0


@pytest.mark.parametrize("name", ["mock", "retail", "airline"])
def test_a_live_environment_is_where_its_replay_comes_to(domain_of, name):
    """Only domains without `sync` are scored on the live databases."""
    domain = domain_of(name)
    for task in domain.tasks("base")[:30]:
        gold = task.gold_actions
        for calls in (gold, gold[:-1], [*gold, *gold[-1:]], [replace(a, arguments={}) for a in gold]):
            transcript, live = play_calls(task, domain, calls)
            again = replay(task, played(task, transcript), domain)
            assert live.same_state(again)
            assert (live.db_hash(), live.user_db_hash()) == (again.db_hash(), again.user_db_hash())


def test_scoring_leaves_the_environment_as_it_was(mock):
    from envs.users.scripted import ScriptedUser

    task = a_task(mock, "create_task_1_with_env_assertions")
    env = Env(mock, task, ScriptedUser())
    env.reset()
    env.step(AgentTurn(actions=(CREATE,)))
    env.interrupt(StopReason.USER_STOP)
    before = env.toolkit.db_hash(), env.toolkit.user_db_hash()
    assert official_reward(task, env.transcript, env).total == 1.0
    assert (env.toolkit.db_hash(), env.toolkit.user_db_hash()) == before
    assert official_reward(task, env.transcript, env) == official_reward(replace(task), env.transcript, env)


def test_a_solo_agent_does_the_customer_s_part(domain_of):
    telecom = domain_of("telecom")
    task = next(t for t in telecom.tasks("small") if t.gold_actions and all(a.requestor == "user" for a in t.gold_actions))
    env = Env(telecom, task, None)
    env.reset()
    for action in task.gold_actions:
        env.step(AgentTurn(actions=(replace(action, requestor="assistant"),)))
    env.step(AgentTurn(actions=(Action("done"),)))
    assert env.stop_reason is StopReason.AGENT_STOP
    assert official_reward(task, env.transcript, env).total == 1.0
