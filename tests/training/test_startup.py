"""How the parts of a run are started: what they are given of the machine, and what is said when there is no room."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from envs.errors import TaudojoError
from training.compose import load
from training.learner import group
from training.learner.group import LearnerGroup
from training.startup import start_learner


def test_the_learner_has_a_thread_for_each_core_that_it_may_use(monkeypatch: pytest.MonkeyPatch):
    given: list[Any] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5, 7, 9})
    monkeypatch.setattr(LearnerGroup, "start", lambda config, **_: given.append(config) or SimpleNamespace(close=None))
    start_learner(load(["cluster=local"]), "model", ExitStack())
    start_learner(load(["cluster=local", "cluster.learner_world_size=2"]), "model", ExitStack())
    assert [config.threads for config in given] == [5, 2]


def test_a_cluster_without_room_for_the_learner_names_the_keys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(group, "placement_group", lambda *_, **__: SimpleNamespace(wait=lambda timeout_s: False))
    monkeypatch.setattr(group, "remove_placement_group", lambda _: None)
    config = load(["cluster=slurm"])
    with pytest.raises(TaudojoError, match=r"no room for 2 .* lower cluster\.learner_world_size or cluster\.rollout_workers"):
        LearnerGroup.start(config.learner_config("model", None), world_size=2, num_gpus=1.0)
    assert config.cluster.learner_world_size == 2
