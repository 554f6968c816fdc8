"""What a step logs: every name of the list, and values worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.types import StopReason
from rewards.breakdown import Component, RewardBreakdown
from rollouts.engines.base import EngineConfig
from rollouts.engines.fake import FakeScript
from rollouts.scheduler import RolloutPool
from rollouts.store import TrajectoryStore
from rollouts.trajectory import TokenSegment, Trajectory
from stage_fakes import ALGORITHM, FakeLearner, FakeStop, FakeSync, metrics_of, tracker, trajectory
from training.config import GRPOSection
from training.metrics import LEARNER, STEP_METRICS, engine_metrics, episode_metrics, policy_turns
from training.run import RunFolder
from training.stages.grpo import Parts, run_grpo

ROOT = Path(__file__).resolve().parents[2]


def scored(official: float, group: int, reward: float = 0.5, stop: StopReason = StopReason.USER_STOP) -> Trajectory:
    played = trajectory(reward, group, stop)
    return replace(played, metrics=replace(played.metrics, official_reward=official))


def test_success_is_counted_by_episode_and_by_group():
    metrics = episode_metrics([scored(1.0, 0), scored(0.0, 0), scored(1.0, 1), scored(1.0, 1), scored(0.0, 2), scored(0.0, 2)])
    assert metrics["success/rate"] == pytest.approx(0.5)
    assert metrics["success/pass_at_k"] == pytest.approx(2 / 3)
    assert metrics["success/pass_hat_k"] == pytest.approx(1 / 3)


def test_an_ending_that_is_not_the_agent_s_fault_is_no_failure():
    metrics = episode_metrics([scored(1.0, 0), scored(0.0, 0, stop=StopReason.TIMEOUT)])
    assert (metrics["success/rate"], metrics["success/pass_hat_k"]) == (1.0, 1.0)
    assert metrics["stop/timeout"] == 0.5
    assert {name for name in metrics if name.startswith("stop/")} == {f"stop/{reason}" for reason in StopReason}


def test_nothing_but_broken_episodes_is_no_success():
    metrics = episode_metrics([scored(1.0, 0, stop=StopReason.ENGINE_ERROR)])
    assert metrics["success/rate"] == metrics["success/pass_at_k"] == 0.0


def test_raw_and_shaped_reward_stand_side_by_side_with_every_component():
    parts = (Component("actions", 0.4, 0.5), Component("official", 1.0, 0.5))
    first = replace(scored(1.0, 0, 0.7), reward=RewardBreakdown(0.7, parts))
    second = replace(scored(0.0, 0, 0.1), reward=RewardBreakdown(0.1, (Component("actions", 0.2, 0.5),)))
    metrics = episode_metrics([first, second])
    assert metrics["batch_reward/raw"] == metrics["batch_reward/official"] == 0.5
    assert metrics["batch_reward/shaped"] == metrics["reward/mean"] == pytest.approx(0.4)
    assert metrics["batch_reward/actions"] == pytest.approx(0.3)


def test_turns_are_what_the_policy_said_also_where_weights_were_swapped_within_one():
    spans = [(1, 3, 0), (3, 5, 1), (8, 9, 1)]
    segment = TokenSegment([0] * 9, [False, True, True, True, True, False, False, False, True], [0.0] * 9, spans)
    assert policy_turns(replace(trajectory(0.0, 0), segments=[segment, segment])) == 4


def test_engines_are_as_busy_as_their_requests_were_long():
    segment = TokenSegment([0] * 9, [False] * 4 + [True] + [False] * 3 + [True], [0.0] * 9, [(4, 5, 0), (8, 9, 0)])
    played = replace(trajectory(0.0, 0), segments=[segment], timings={"generate": 6.0}, cached_tokens=6)
    metrics = engine_metrics([played, played], seconds=4.0, places=6)
    assert metrics["engine/in_flight"] == 3.0
    assert metrics["engine/utilisation"] == 0.5
    assert metrics["engine/kv_cache_hit_rate"] == 0.5  # 6 of 4 + 8
    assert metrics["gen_tokens_per_s"] == 1.0


def test_a_run_logs_every_number_of_the_list(cluster: None, world_config: Any, world: Any, task_sets: Any, folder: RunFolder):
    """Real workers with real tasks, a fake engine that says one thing, a fake learner."""
    words = world.chat.assistant(world.parser.parse("I can help with that."))
    script = FakeScript(answers=[words], latency_s=0.01)
    pool = RolloutPool.start(
        replace(world_config, limits=replace(world_config.limits, max_steps=3)), EngineConfig(script.model_path)
    )
    settings = GRPOSection(tasks_per_step=2, samples_per_task=2, steps=2, drop_flat_groups=False)
    parts = Parts(pool, FakeLearner(), FakeSync())  # type: ignore[arg-type]
    try:
        store = TrajectoryStore(folder.path / "trajectories")
        run_grpo(settings, ALGORITHM, 0, task_sets.grpo, parts, store, folder, tracker(folder), FakeStop())
    finally:
        pool.close()
    learners_own = set(LEARNER) - {name for name in LEARNER if name.startswith("sync/")} - {"lr"}
    for number, line in enumerate(metrics_of(folder)):
        logged = line["metrics"]
        assert set(STEP_METRICS) - learners_own - set(logged) == set()
        parts_of_step = ("rollout", "reward", "prepare", "update", "sync")
        assert sum(logged[f"seconds/{part}"] for part in parts_of_step) == pytest.approx(logged["seconds/step"])
        assert 0 < logged["engine/utilisation"] < 1
        assert 0 < logged["seconds/reward"] < logged["seconds/rollout"]
        assert (logged["seconds/idle"] > 0) and logged["staleness/max"] == 0
        assert ("samples" in line) == (number == 0) and ("conversations" in line) == (number == 0)
        json.dumps(line)


def test_every_number_of_the_list_is_on_the_page():
    page = (ROOT / "docs" / "observability.md").read_text()
    missing = [name for name in STEP_METRICS if f"`{name}`" not in page and not name.startswith("stop/")]
    assert missing == []
