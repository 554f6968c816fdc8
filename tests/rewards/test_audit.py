"""The audit: which tasks it names, and how it prints them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rewards.audit import REASONS, audit, main, without

OFFICIAL = Path(__file__).parents[3] / "shared" / "tau2"
SOURCE = ["--data-dir", str(OFFICIAL)] if OFFICIAL.is_dir() else []
official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official data is not in ../shared")


def changed(domain, task_id: str, **criteria):
    task = next(t for t in domain.all_tasks if t.id == task_id)
    return replace(task, raw={**task.raw, "evaluation_criteria": {**task.criteria, **criteria}})


def test_a_sound_task_has_no_faults(domain_of):
    mock = domain_of("mock")
    found = audit(changed(mock, "create_task_1"), mock)
    assert found.reasons == () and found.gold_reward == 1.0 and found.gold_calls == 1


def test_each_fault_is_named(domain_of):
    mock = domain_of("mock")
    read = {"action_id": "0", "name": "get_users", "arguments": {}}
    wrong = {"action_id": "0", "name": "update_task_status", "arguments": {"task_id": "task_9", "status": "completed"}}
    assert audit(changed(mock, "create_task_1", actions=[read]), mock).reasons == ("noop_passes", "gold_is_noop")
    assert audit(changed(mock, "create_task_1", actions=[read], reward_basis=["ACTION"]), mock).reasons == ("gold_is_noop",)
    broken = audit(changed(mock, "create_task_1", actions=[wrong]), mock)
    assert set(broken.reasons) == set(REASONS) and broken.errors == ("update_task_status: Error: Task task_9 not found",)


def test_doing_nothing_includes_saying_what_is_wanted(domain_of):
    mock = domain_of("mock")
    talk = changed(mock, "create_task_1", actions=[], communicate_info=["forty-two"])
    assert audit(talk, mock).noop_passes


def test_a_task_that_the_evaluator_cannot_score_is_shown_as_that(domain_of, capsys):
    mock = domain_of("mock")
    found = audit(changed(mock, "create_task_1_with_env_assertions", actions=[]), mock)
    assert found.gold_reward is None and not found.noop_passes


def test_tasks_are_left_out_by_reason_and_without_reasons_nothing_is_played(domain_of, monkeypatch):
    mock = domain_of("mock")
    tasks = [changed(mock, "create_task_1"), changed(mock, "create_task_1", actions=[])]
    assert without(tasks, mock, ["noop_passes"]) == tasks[:1]
    assert without(tasks, mock, ["gold_errors"]) == tasks
    monkeypatch.setattr("rewards.audit.audit", lambda *_: pytest.fail("played"))
    assert without(tasks, mock, []) == tasks


@official
@pytest.mark.parametrize(("domain", "passed", "tasks"), [("airline", 24, 50), ("retail", 11, 114)])
def test_the_official_tasks_that_doing_nothing_passes(capsys, domain, passed, tasks):
    assert main(["--domain", domain, "--data-dir", str(OFFICIAL), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["domain"], report["version"], report["split"]) == (domain, "tau2-bench v1.0.1", "base")
    assert len(report["tasks"]) == tasks
    assert sum(task["noop_passes"] for task in report["tasks"]) == passed
    assert all(task["reasons"] == [reason for reason in REASONS if task[reason]] for task in report["tasks"])


def test_the_table_lists_faulty_tasks_only_and_counts_them(capsys):
    assert main(["--domain", "mock", *SOURCE]) == 0
    told = capsys.readouterr().out
    assert "impossible_task_1" in told and "create_task_1_with" not in told
    assert "of 10 tasks: noop_passes" in told


def test_wrong_arguments_are_told_in_a_sentence(capsys):
    assert main(["--domain", "mook", *SOURCE]) == 2
    assert "There is no domain 'mook'" in capsys.readouterr().err
