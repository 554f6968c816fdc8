"""Which tasks a run sees: no customer on both sides of an evaluation, and held-out tasks that are the same for every run."""

from __future__ import annotations

from typing import Any

import pytest

from envs.data import DataSource
from envs.domain import Domain, load_domain
from envs.errors import TaudojoError
from envs.retail.sampler import task_users
from training.compose import load
from training.tasks import TaskSets, choose_tasks

SMALL = ["evaluate.heldout=60", "sft.tasks=120"]


@pytest.fixture(scope="module")
def retail(packaged_data: DataSource) -> Domain:
    return load_domain("retail", packaged_data)


def chosen(retail: Domain, *overrides: str) -> TaskSets:
    return choose_tasks(retail, load([*SMALL, *overrides]), grpo_tasks=120)


@pytest.fixture(scope="module")
def sets(retail: Domain) -> TaskSets:
    return chosen(retail)


def test_no_user_is_in_two_of_test_heldout_and_training(retail: Domain, sets: TaskSets):
    test, heldout = task_users(retail, sets.test), task_users(retail, sets.heldout)
    training = task_users(retail, [*sets.sft, *sets.grpo])
    assert not test & heldout
    assert not (test | heldout) & training
    assert test and heldout and training


def test_a_shortened_test_set_still_keeps_all_its_users_out_of_training(retail: Domain, sets: TaskSets):
    short = chosen(retail, "evaluate.test=2")
    assert [t.id for t in short.test] == [t.id for t in sets.test[:2]]
    assert not task_users(retail, sets.test) & task_users(retail, [*short.sft, *short.grpo, *short.heldout])


def test_the_test_set_is_the_official_split(retail: Domain, sets: TaskSets):
    assert [t.id for t in sets.test] == [t.id for t in retail.tasks("test")]
    assert len(sets.test) == 40
    assert chosen(retail, "evaluate.test=0").test == []


def test_heldout_tasks_do_not_depend_on_the_seed(retail: Domain, sets: TaskSets):
    other = chosen(retail, "seed=7")
    assert [t.raw for t in other.heldout] == [t.raw for t in sets.heldout]
    assert len(sets.heldout) == 60
    assert [t.raw for t in other.sft[:120]] != [t.raw for t in sets.sft[:120]]
    assert [t.raw for t in other.grpo] != [t.raw for t in sets.grpo]


def test_the_same_seed_gives_the_same_tasks(retail: Domain, sets: TaskSets):
    again = chosen(retail)
    assert [[t.raw for t in part] for part in vars(again).values()] == [[t.raw for t in part] for part in vars(sets).values()]


def test_official_training_tasks_are_added_and_can_be_left_out(retail: Domain, sets: TaskSets):
    train = {t.id for t in retail.tasks("train")}
    added = [t for t in sets.sft if t.id in train]
    assert 0 < len(added) == len(sets.sft) - 120
    assert len(chosen(retail, "sft.official_train=false").sft) == 120


@pytest.mark.parametrize("key", ["evaluate.heldout_kinds", "sft.kinds", "grpo.kinds"])
def test_an_unknown_kind_names_its_key(retail: Domain, key: str):
    with pytest.raises(TaudojoError, match=rf"{key}: there is no task kind cancle \(have: .*cancel"):
        chosen(retail, f"{key}=[cancle]")


def test_chosen_kinds_are_the_only_ones(retail: Domain):
    sets: Any = chosen(retail, "grpo.kinds=[cancel]", "evaluate.heldout_kinds=[lookup]")
    assert {t.kind for t in sets.grpo} == {"cancel"}
    assert {t.kind for t in sets.heldout} == {"lookup"}


def test_audited_tasks_are_kept_out_of_training_and_stay_in_evaluation(retail: Domain, sets: TaskSets):
    sound = chosen(retail, "env.exclude_audited=[noop_passes]", "evaluate.heldout_kinds=[lookup]")
    assert "lookup" in {t.kind for t in sets.sft} and "lookup" in {t.kind for t in sets.grpo}
    assert not {t.kind for t in [*sound.sft, *sound.grpo]} & {"lookup"}
    assert [t.raw for t in sound.test] == [t.raw for t in sets.test]
    assert {t.kind for t in sound.heldout} == {"lookup"}


def test_excluding_every_task_is_an_error_that_says_what_to_change(retail: Domain):
    with pytest.raises(TaudojoError, match=r"env\.exclude_audited: no task for grpo is free of noop_passes; .*grpo\.kinds"):
        chosen(retail, "env.exclude_audited=[noop_passes]", "grpo.kinds=[lookup]")


# -- domains without a sampler


@pytest.mark.parametrize(
    ("name", "test", "heldout", "train"), [("airline", 20, 6, 24), ("telecom", 40, 15, 59), ("mock", 0, 2, 7)]
)
def test_official_training_tasks_train_and_every_fifth_is_held_out(
    packaged_data: DataSource, name: str, test: int, heldout: int, train: int
):
    domain = load_domain(name, packaged_data)
    sets = choose_tasks(domain, load([f"env={name}"]))
    assert (len(sets.test), len(sets.heldout), len(sets.sft)) == (test, heldout, train)
    ids = [{task.id for task in tasks} for tasks in (sets.test, sets.heldout, sets.sft)]
    assert sum(map(len, ids)) == len(set().union(*ids))
    assert sets.grpo == sets.sft
    assert choose_tasks(domain, load([f"env={name}", "seed=3"])) == sets


def test_fewer_heldout_tasks_leave_the_training_tasks_as_they_are(packaged_data: DataSource):
    airline = load_domain("airline", packaged_data)
    sets = choose_tasks(airline, load(["env=airline"]))
    fewer = choose_tasks(airline, load(["env=airline", "evaluate.heldout=2", "evaluate.test=0", "sft.tasks=5"]))
    assert fewer.heldout == sets.heldout[:2] and fewer.test == []
    assert fewer.grpo == sets.grpo and fewer.sft == sets.sft[:5]


def test_tasks_that_teach_little_are_kept_out_there_too(packaged_data: DataSource):
    airline = load_domain("airline", packaged_data)
    sound = choose_tasks(airline, load(["env=airline", "env.exclude_audited=[noop_passes]"]))
    every = choose_tasks(airline, load(["env=airline"]))
    assert 0 < len(sound.sft) < len(every.sft) and sound.heldout == every.heldout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["grpo.kinds=[cancel]"], r"grpo\.kinds: the tasks of airline have no kinds; set grpo\.kinds=null"),
        (["sft.official_train=false"], r"sft\.official_train=false: airline has no other tasks to train on; set it to true"),
    ],
)
def test_what_a_domain_without_a_sampler_cannot_do_is_named(packaged_data: DataSource, overrides: list[str], message: str):
    with pytest.raises(TaudojoError, match=message):
        choose_tasks(load_domain("airline", packaged_data), load(["env=airline", *overrides]))


def test_an_unknown_audit_reason_is_named():
    with pytest.raises(TaudojoError, match=r"env\.exclude_audited\.0: .*noop_passes.*got 'boring'"):
        load(["env.exclude_audited=[boring]"])
