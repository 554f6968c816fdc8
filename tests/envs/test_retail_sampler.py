"""Sampled tasks: solvable, different, repeatable, and about nobody who must stay unseen."""

import json
from collections import Counter

import pytest

from envs.errors import TaudojoError
from envs.retail.sampler import KINDS, proof_failure, sample_tasks, task_users
from envs.types import Task


def test_every_task_is_proven_by_execution(retail, sampled):
    assert [proof_failure(retail, task) for task in sampled] == [None] * len(sampled)


def test_the_proof_finds_a_wrong_task(retail, sampled):
    task = next(task for task in sampled if task.kind == "cancel")
    raw = json.loads(json.dumps(task.raw))
    raw["evaluation_criteria"]["actions"][-1]["arguments"]["reason"] = "bored"
    assert proof_failure(retail, Task("retail", raw)) == "a gold action fails"
    raw["evaluation_criteria"]["actions"].pop()
    raw["evaluation_criteria"]["communicate_info"] = ["a secret"]
    raw["description"]["notes"] = "Done."
    assert proof_failure(retail, Task("retail", raw)) == "the answer is not said"


def test_the_same_seed_gives_the_same_tasks_and_another_gives_others(retail, sampled, official_users):
    again = sample_tasks(retail, 400, seed=0, exclude_users=official_users)
    assert [task.raw for task in again] == [task.raw for task in sampled]
    other = sample_tasks(retail, 400, seed=1, exclude_users=official_users)
    assert all(task.raw != twin.raw for task, twin in zip(other, sampled, strict=True))


def test_kinds_are_dealt_evenly_and_can_be_chosen(retail, sampled):
    assert Counter(task.kind for task in sampled) == dict.fromkeys(KINDS, 50)
    assert [task.kind for task in sample_tasks(retail, 3, seed=0, kinds=["cancel", "lookup"])] == ["cancel", "lookup", "cancel"]
    with pytest.raises(TaudojoError, match="no task kind 'steal'"):
        sample_tasks(retail, 1, seed=0, kinds=["steal"])


def test_excluded_customers_do_not_appear(retail, sampled, official_users):
    assert len(official_users) > 20
    used = task_users(retail, sampled)
    assert not used & official_users
    heldout = sample_tasks(retail, 80, seed=5, exclude_users=official_users | used)
    assert not task_users(retail, heldout) & (official_users | used)


def test_task_users_finds_every_customer_whose_records_the_gold_touches(retail):
    for task in retail.tasks("base"):
        owners = {retail.database.orders[a.arguments["order_id"]].user_id for a in task.gold_actions
                  if a.arguments.get("order_id") in retail.database.orders}  # fmt: skip
        assert owners <= task_users(retail, [task]), task.id
        assert task_users(retail, [task]), task.id


def test_all_customers_excluded_is_an_error(retail):
    with pytest.raises(TaudojoError, match="from the 0 customers"):
        sample_tasks(retail, 1, seed=0, exclude_users=set(retail.database.users))


def test_ids_and_wishes_are_unique(sampled):
    assert len({task.id for task in sampled}) == len(sampled)
    told = [json.dumps([task.instructions, [a.to_json() for a in task.gold_actions]]) for task in sampled]
    assert len(set(told)) == len(told)


def test_every_value_of_a_write_is_said_by_the_customer_or_by_an_earlier_tool_result(retail, sampled):
    for task in sampled:
        toolkit = retail.new_toolkit()
        known = " ".join(str(value) for value in task.instructions.values())
        for action in task.gold_actions:
            if action.name not in retail.write_tools:
                known += toolkit.use(action).content
                continue
            for name, value in action.arguments.items():
                for part in value if isinstance(value, list) else [value]:
                    if name != "reason":
                        assert part in known, (task.id, name, part)


def test_gold_begins_with_authentication_and_writes_last(retail, sampled):
    for task in sampled:
        names = [action.name for action in task.gold_actions]
        assert names[0].startswith("find_user_id_by_")
        assert not any(name in retail.write_tools for name in names[:-1])
        assert (names[-1] in retail.write_tools) is (task.kind != "lookup")
        assert bool(task.communicate_info) is (task.kind == "lookup")


def test_two_thousand_tasks_are_two_thousand_different_ones(retail, official_users):
    tasks = sample_tasks(retail, 2000, seed=7, exclude_users=official_users)
    assert len({task.id for task in tasks}) == 2000
