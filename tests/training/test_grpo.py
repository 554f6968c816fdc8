"""GRPO as a loop: what is asked, what is left out, what is trained on, and what an interruption leaves behind."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.types import StopReason
from rollouts.store import TrajectoryStore
from rollouts.trajectory import EpisodeRequest, TokenSegment, Trajectory
from stage_fakes import (
    ALGORITHM,
    Broken,
    FakeLearner,
    FakePool,
    FakeStop,
    FakeSync,
    break_at,
    metrics_of,
    task,
    tracker,
    trajectory,
)
from training import advantages
from training.config import AlgorithmSection, GRPOSection
from training.run import Interrupted, RunFolder
from training.sampling import spare_groups
from training.stages import grpo
from training.stages.grpo import Parts, requests_at, run_grpo, train_step


def grpo_settings(**fields: Any) -> GRPOSection:
    return GRPOSection(**{"tasks_per_step": 2, "samples_per_task": 3, "steps": 4} | fields)


def test_requests_are_groups_of_one_task_with_seeds_of_their_own():
    tasks = [task(n) for n in range(6)]
    requests = requests_at(grpo_settings(temperature=0.7), tasks, step=0, seed=0)
    assert [r.group for r in requests] == [0, 0, 0, 1, 1, 1]
    assert len({r.task.id for r in requests[:3]}) == len({r.task.id for r in requests[3:]}) == 1
    assert len({r.seed for r in requests}) == 6
    assert {(r.stage, r.step, r.temperature, r.policy) for r in requests} == {("grpo", 0, 0.7, "engine")}


def test_every_task_is_asked_once_in_an_epoch():
    tasks = [task(n) for n in range(6)]
    for epoch in range(2):
        asked = Counter(r.task.id for step in range(3) for r in requests_at(grpo_settings(), tasks, 3 * epoch + step, seed=5))
        assert asked == {t.id: 3 for t in tasks}


def test_requests_depend_on_seed_and_step_only():
    tasks = [task(n) for n in range(6)]
    assert requests_at(grpo_settings(), tasks, 7, seed=1) == requests_at(grpo_settings(), tasks, 7, seed=1)
    seeds = [{r.seed for r in requests_at(grpo_settings(), tasks, step, seed)} for step in range(4) for seed in range(3)]
    assert len(set.union(*seeds)) == 12 * 6


def test_fewer_tasks_than_a_step_wants_are_all_asked():
    assert {r.task.id for r in requests_at(grpo_settings(tasks_per_step=8), [task(0), task(1)], 0, 0)} == {"task-0", "task-1"}


def test_flat_groups_are_dropped_and_counted():
    played = [trajectory(r, g) for g, r in ((0, 1.0), (0, 0.0), (1, 0.5), (1, 0.5))]
    samples, left_out = grpo.samples_of(played, grpo_settings(), AlgorithmSection(normalize_by_std=False))
    assert [s.advantages for s in samples] == [[0.5] * 3, [-0.5] * 3]
    assert list(samples[0].sampler_logprobs or ()) == [0.0, -1.0, -2.0]
    assert left_out["flat_groups"] == 1.0
    assert left_out["excluded"] == 0.0
    assert left_out["reward/group_std"] == pytest.approx(0.25)
    kept, left_out = grpo.samples_of(played, grpo_settings(drop_flat_groups=False), ALGORITHM)
    assert len(kept) == 4
    assert left_out["flat_groups"] == 1.0


@pytest.mark.parametrize("stop", [StopReason.ENGINE_ERROR, StopReason.USER_ERROR, StopReason.TIMEOUT, StopReason.CANCELLED])
def test_endings_that_are_not_the_agent_s_fault_are_left_out_and_counted(stop: StopReason):
    played = [trajectory(1.0, 0), trajectory(0.0, 0), trajectory(-9.0, 0, stop)]
    samples, left_out = grpo.samples_of(played, grpo_settings(), AlgorithmSection(normalize_by_std=False))
    assert [s.advantages[0] for s in samples if s.advantages] == [0.5, -0.5]  # the broken episode does not pull the mean
    assert left_out["excluded"] == 1.0


def test_the_agent_s_own_bad_endings_count():
    played = [trajectory(1.0, 0), trajectory(0.0, 0, StopReason.CONTEXT_FULL), trajectory(0.4, 0, StopReason.LOOP)]
    samples, left_out = grpo.samples_of(played, grpo_settings(), ALGORITHM)
    assert len(samples) == 3
    assert left_out["excluded"] == 0.0


def test_nothing_but_broken_episodes_gives_no_samples():
    assert grpo.samples_of([trajectory(1.0, 0, StopReason.TIMEOUT)], grpo_settings(), ALGORITHM) == (
        [],
        {"excluded": 1.0, "flat_groups": 0.0},
    )


def test_of_a_large_group_the_most_different_are_trained_on_with_the_whole_group_s_advantages():
    played = [trajectory(r, g) for g, r in ((0, 0.8), (0, 0.2), (0, 1.0), (0, 0.3), (0, 0.1), (1, 1.0), (1, 0.0))]
    samples, left_out = grpo.samples_of(played, grpo_settings(train_per_group=3), AlgorithmSection(normalize_by_std=False))
    assert [round(s.advantages[0], 3) for s in samples if s.advantages] == [-0.28, 0.52, -0.38, 0.5, -0.5]
    assert left_out["trained_episodes"] == 5.0


def test_the_chosen_subset_has_the_greatest_variance_of_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rewards = rng.choice([0.0, 0.25, 0.5, 1.0], size=7)
        keep = int(rng.integers(2, 7))
        kept = advantages._spread(rewards, np.zeros(7, int), keep)
        assert kept.sum() == keep
        assert rewards[kept].var() == pytest.approx(max(np.var(c) for c in itertools.combinations(rewards, keep)))


def test_an_episode_without_advantage_is_left_out():
    played = [trajectory(1.0, 0), trajectory(0.5, 0), trajectory(0.0, 0)]
    samples, _ = grpo.samples_of(played, grpo_settings(), AlgorithmSection(normalize_by_std=False))
    assert [s.advantages[0] for s in samples if s.advantages] == [0.5, -0.5]


def test_negative_advantages_can_be_weighed_down():
    played = [trajectory(1.0, 0), trajectory(0.0, 0)]
    settings = grpo_settings(negative_weight=0.25)
    samples, _ = grpo.samples_of(played, settings, AlgorithmSection(normalize_by_std=False))
    assert [s.advantages[0] for s in samples if s.advantages] == [0.5, -0.125]


def test_each_segment_of_a_trajectory_carries_its_advantage():
    played = [trajectory(1.0, 0, segments=2), trajectory(0.0, 0)]
    samples, _ = grpo.samples_of(played, grpo_settings(), AlgorithmSection(normalize_by_std=False))
    assert [s.advantages[0] for s in samples if s.advantages] == [0.5, 0.5, -0.5]


def step_of(settings: GRPOSection, algorithm: AlgorithmSection, pool: FakePool) -> tuple[FakeLearner, FakeSync, dict[str, float]]:
    learner, sync = FakeLearner(), FakeSync()
    requests = requests_at(settings, [task(0), task(1)], 0, 0)
    _, metrics = train_step(Parts(pool, learner, sync), requests, settings, algorithm, 1e-3)  # type: ignore[arg-type]
    return learner, sync, metrics


def test_a_step_updates_once_on_everything_and_syncs():
    learner, sync, metrics = step_of(grpo_settings(), ALGORITHM, FakePool())
    assert [len(batch) for batch in learner.batches] == [6]
    assert learner.asked == []  # on-policy: the learner's own log-probs are those of the update
    assert sync.runs == 1
    assert metrics["tokens"] == 12.0
    assert metrics["sync/mean_gap"] == 1e-5
    assert metrics["stop/user_stop"] == 1.0
    assert {"reward/mean", "reward/std", "batch_reward/official", "seconds/rollout", "seconds/update", "seconds/sync"} <= set(
        metrics
    )


def test_several_updates_share_the_episodes_and_the_log_probs_from_before_the_first():
    learner, sync, metrics = step_of(grpo_settings(updates_per_step=2, temperature=0.7), ALGORITHM, FakePool())
    assert [len(batch) for batch in learner.batches] == [3, 3]
    assert learner.temperatures == [0.7] * 3  # all log-probs are those of the distribution that was sampled from
    assert learner.asked == ["old"]
    assert all(s.old_logprobs == [-1.0] * 3 for batch in learner.batches for s in batch)
    assert sync.runs == 1
    assert metrics["tokens"] == 12.0


def test_a_kl_cost_asks_the_reference_policy():
    learner, _, _ = step_of(grpo_settings(), AlgorithmSection(kl_coef=0.1), FakePool())
    assert learner.asked == ["reference"]
    assert all(s.reference_logprobs == [-2.0] * 3 for s in learner.batches[0])


def test_kl_can_be_taken_off_the_reward_instead():
    # −1 against −2 for the reference: k1 is 1 for each of two tokens; a tenth of it is 0.2 an episode
    algorithm = AlgorithmSection(kl_coef=0.1, kl_in="reward", kl_estimator="k1", normalize_by_std=False)
    learner, _, metrics = step_of(grpo_settings(), algorithm, FakePool())
    assert learner.asked == ["old", "reference"]
    assert all(s.reference_logprobs is None for s in learner.batches[0])
    assert metrics["kl_reference"] == pytest.approx(1.0)
    assert metrics["reward/kl_cost"] == pytest.approx(0.2)
    charged, _ = grpo.charge_kl([trajectory(1.0, 0, segments=2), trajectory(0.5, 0)], FakeLearner(), algorithm)  # type: ignore[arg-type]
    assert [t.reward.total for t in charged] == pytest.approx([0.6, 0.3])
    assert algorithm.loss_config().kl_coef == 0.0


@pytest.mark.parametrize("estimator", ["grpo", "grpo_passk", "rloo", "opo", "gpg", "reinforce_plus_plus_baseline"])
def test_an_episode_alone_in_its_group_is_no_trouble_to_any_estimator(estimator: Any):
    played = [trajectory(0.8, 0), trajectory(1.0, 1), trajectory(0.0, 1)]
    values = grpo.advantages_of(played, AlgorithmSection(advantage=estimator))
    assert values[0] == [0.0] and values[1][0] > 0
    assert grpo.advantages_of(played[:1], AlgorithmSection(advantage=estimator)) == [[0.0]]


def test_a_step_without_a_signal_changes_nothing():
    learner, sync, metrics = step_of(grpo_settings(), ALGORITHM, FakePool(score=lambda request: 0.5))
    assert learner.batches == []
    assert sync.runs == 0
    assert metrics["flat_groups"] == 2.0
    assert metrics["reward/mean"] == 0.5


def test_an_episode_that_is_alone_in_its_group_has_nothing_to_be_compared_with():
    played = [trajectory(0.8, 0), trajectory(0.2, 0, StopReason.TIMEOUT), trajectory(1.0, 1), trajectory(0.0, 1)]
    samples, left_out = grpo.samples_of(played, grpo_settings(), AlgorithmSection(normalize_by_std=False))
    assert [s.advantages[0] for s in samples if s.advantages] == [0.5, -0.5]
    assert left_out["flat_groups"] == 1.0


def test_spare_groups_are_of_other_tasks_and_numbered_after_the_step_s():
    tasks = [task(n) for n in range(6)]
    asked = requests_at(grpo_settings(), tasks, step=1, seed=0)
    spare = list(spare_groups(tasks, asked, seed=0, most=3))
    assert [[r.group for r in group] for group in spare] == [[2] * 3, [3] * 3, [4] * 3]
    ids = [{r.task.id for r in group} for group in spare]
    assert all(len(one) == 1 for one in ids)
    assert len(set.union(*ids, {r.task.id for r in asked})) == 5
    assert len({r.seed for group in [asked, *spare] for r in group}) == 15
    assert spare == list(spare_groups(tasks, asked, seed=0, most=3))
    assert len(list(spare_groups(tasks, asked, seed=0, most=9))) == 4  # no task is left


def test_flat_groups_are_replaced_until_enough_have_a_signal_or_none_is_left(folder: RunFolder):
    """Tasks 0 and 1 always score the same; a step that asks for one of them plays others for it."""

    def score(request: EpisodeRequest) -> float:
        return 0.5 if request.task.id in ("task-0", "task-1") else float(request.seed % 7)

    learner, pool = FakeLearner(), FakePool(score)
    play_grpo(folder, learner, pool, refill=4, steps=3)
    lines = [line["metrics"] for line in metrics_of(folder)]
    flat = sum(line["flat_groups"] for line in lines)
    assert flat >= 2
    assert sum(line.get("refill/played", 0.0) for line in lines) == flat  # each flat group, refilled ones among them
    assert all(line.get("refill/missing", 0.0) == 0.0 for line in lines)
    assert all(len({s.advantages[0] > 0 for s in batch}) == 2 for batch in learner.batches)
    assert sum(line["episodes"] for line in lines) == len(pool.played) == 18 + 3 * flat
    store = TrajectoryStore(folder.path / "trajectories")
    assert sum(len(store.read("grpo", step)) for step in range(3)) == len(pool.played)


def test_refilling_ends_at_its_bound(folder: RunFolder):
    pool = FakePool(score=lambda request: 0.5)
    play_grpo(folder, FakeLearner(), pool, refill=3, steps=1)
    (line,) = metrics_of(folder)
    assert line["metrics"]["refill/played"] == 3.0
    assert line["metrics"]["refill/missing"] == 2.0
    assert len(pool.played) == 6 + 9


def test_turns_are_credited_where_it_is_asked_for():
    """Two turns of one token each; a group's episodes differ in the second turn only."""

    def two_turns(reward: float) -> Trajectory:
        segment = TokenSegment([5, 6, 7], [False, True, True], [0.0, -1.0, -2.0], [(1, 2, 0), (2, 3, 0)])
        return replace(trajectory(reward, 0), segments=[segment])

    played = [two_turns(0.5), two_turns(0.5)]
    algorithm = AlgorithmSection(credit="turn", normalize_by_std=False)
    # to go: 0.5 0.1 and 0.5 0.3
    samples, left_out = grpo.samples_of(played, grpo_settings(), algorithm, earned=[[0.4, 0.1], [0.2, 0.3]])
    assert [s.advantages for s in samples] == [pytest.approx([0.0, 0.0, -0.1]), pytest.approx([0.0, 0.0, 0.1])]
    assert left_out["flat_groups"] == 0.0
    by_outcome, left_out = grpo.samples_of(played, grpo_settings(), AlgorithmSection(normalize_by_std=False))
    assert by_outcome == [] and left_out["flat_groups"] == 1.0


def test_a_step_asks_what_the_turns_of_each_request_earned():
    asked: list[tuple[str, float]] = []

    def credit(request: EpisodeRequest, played: Trajectory) -> list[float]:
        asked.append((request.task.id, played.reward.total))
        return [played.reward.total]

    learner, pool = FakeLearner(), FakePool()
    requests = requests_at(grpo_settings(), [task(0), task(1)], 0, 0)
    algorithm = AlgorithmSection(credit="turn")
    parts = Parts(pool, learner, FakeSync(), credit)  # type: ignore[arg-type]
    train_step(parts, requests, grpo_settings(), algorithm, 1e-3)
    assert asked == [(r.task.id, float(r.seed % 7)) for r in requests]
    outcome, _, _ = step_of(grpo_settings(), ALGORITHM, FakePool())
    turns = [s.advantages[1] for s in learner.batches[0] if s.advantages]
    assert turns == pytest.approx([s.advantages[1] for s in outcome.batches[0] if s.advantages], abs=1e-4)


def test_the_shaped_reward_s_ranking_is_held_against_the_official_one():
    def official(reward: float, official: float) -> Trajectory:
        played = trajectory(reward, 0)
        return replace(played, metrics=replace(played.metrics, official_reward=official))

    ranked = grpo.episode_metrics([official(0.1, 0.0), official(0.5, 0.0), official(0.9, 1.0)])
    assert ranked["reward/rank_correlation"] == pytest.approx(0.866, abs=1e-3)
    constant = grpo.episode_metrics([official(0.1, 1.0), official(0.5, 1.0)])
    assert "reward/rank_correlation" not in constant


def play_grpo(folder: RunFolder, learner: FakeLearner, pool: FakePool, stop: Any = None, **fields: Any) -> int:
    return run_grpo(
        grpo_settings(**fields),
        ALGORITHM,
        2,
        [task(n) for n in range(6)],
        Parts(pool, learner, FakeSync()),  # type: ignore[arg-type]
        TrajectoryStore(folder.path / "trajectories"),
        folder,
        tracker(folder),
        stop or FakeStop(),
    )


def requests_of(steps: int) -> list[EpisodeRequest]:
    return [r for step in range(steps) for r in requests_at(grpo_settings(), [task(n) for n in range(6)], step, seed=2)]


def test_grpo_plays_each_step_s_requests_and_keeps_their_trajectories(folder: RunFolder):
    learner, pool = FakeLearner(), FakePool()
    assert play_grpo(folder, learner, pool, warmup_steps=2, lr=1.0, drop_flat_groups=False) == 4
    assert pool.played == requests_of(4)
    assert learner.rates == [0.5, 1.0, 1.0, 1.0]
    store = TrajectoryStore(folder.path / "trajectories")
    assert [len(store.read("grpo", step)) for step in range(4)] == [6] * 4
    assert [line["step"] for line in metrics_of(folder)] == list(range(4))
    assert folder.state.tokens == {"grpo_sampled": 4 * 12, "grpo_trained": 4 * 12}


def test_grpo_saves_now_and_then_and_keeps_the_last(folder: RunFolder):
    play_grpo(folder, FakeLearner(), FakePool(), steps=5, checkpoint_steps=2)
    assert [p.name for p in folder.path.glob("checkpoint-*")] == ["checkpoint-grpo-00004"]


def test_an_interrupted_grpo_goes_on_with_the_next_step(folder: RunFolder):
    stop = FakeStop()

    def ctrl_c(number: int) -> None:
        stop.raised = number == 1

    first, second = FakePool(), FakePool()
    with pytest.raises(Interrupted):
        play_grpo(folder, FakeLearner(ctrl_c), first, stop)
    resumed, _ = RunFolder.resume(folder.path)
    assert resumed.state.checkpoint == "checkpoint-grpo-00002"
    assert play_grpo(resumed, FakeLearner(), second) == 4
    assert first.played + second.played == requests_of(4)


# The weights are those of the checkpoint, so the place must be the checkpoint's too.
def test_grpo_that_broke_between_checkpoints_goes_on_from_the_checkpoint(folder: RunFolder):
    with pytest.raises(Broken), folder.timed("grpo"):
        play_grpo(folder, FakeLearner(break_at(3)), FakePool(), checkpoint_steps=2)
    resumed, _ = RunFolder.resume(folder.path)
    assert (resumed.state.checkpoint, resumed.state.step) == ("checkpoint-grpo-00002", 2)
