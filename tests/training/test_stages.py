"""SFT, RFT and GRPO as loops: which batch at which step, what is left out, and what an interruption leaves behind."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.types import Action, Message, StopReason, Task, Transcript
from rewards.breakdown import RewardBreakdown
from rewards.metrics import EpisodeMetrics
from rollouts.store import TrajectoryStore
from rollouts.trajectory import EpisodeRequest, TokenSegment, Trajectory
from training import advantages
from training.config import AlgorithmSection, GRPOSection, RFTSection, SFTSection, TrackingSection, load
from training.learner.base import Sample
from training.run import Interrupted, RunFolder
from training.sampling import spare_groups
from training.stages import grpo
from training.stages.grpo import Parts, requests_at, run_grpo, train_step
from training.stages.rft import keep, run_rft, steps_of
from training.stages.sft import Budget, batch_at, heldout_loss, learning_rate, run_sft, samples_of
from training.sync import SyncReport
from training.tracking import Tracker

SAMPLES = [Sample([i, i + 1], [False, True]) for i in range(10)]
ALGORITHM = AlgorithmSection()


class FakeStop:
    raised = False


class FakeLearner:
    """Remembers what it was asked. `on_update` hears the number of updates so far; it may fail or raise the stop flag."""

    def __init__(self, on_update: Callable[[int], None] = lambda number: None) -> None:
        self.batches: list[list[Sample]] = []
        self.rates: list[float] = []
        self.asked: list[str] = []
        self._on_update = on_update

    def update(self, batch: Sequence[Sample], loss: Any, lr: float) -> dict[str, float]:
        self._on_update(len(self.batches))
        self.batches.append(list(batch))
        self.rates.append(lr)
        return {"loss": 1.0, "tokens": 2.0 * len(batch), "unique_tokens": 2.0 * len(batch), "seconds": 0.5}

    def logprobs(self, batch: Sequence[Sample], reference: bool = False) -> list[list[float]]:
        self.asked.append("reference" if reference else "old")
        return [[-2.0 if reference else -1.0] * len(s.token_ids) for s in batch]

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        (folder / "state.json").write_text(json.dumps(dict(state)))


class FakeSync:
    def __init__(self) -> None:
        self.runs = 0

    def run(self) -> SyncReport:
        self.runs += 1
        return SyncReport(self.runs, 0.1, 0.2, 1e-5, 1e-4)


class FakePool:
    """Plays a request as `score` of it says, in no time."""

    def __init__(self, score: Callable[[EpisodeRequest], float] = lambda request: float(request.seed % 7)) -> None:
        self.played: list[EpisodeRequest] = []
        self._score = score

    def play(self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None = None) -> list[Trajectory]:
        self.played += requests
        done = [trajectory(self._score(r), r.group, task_id=r.task.id) for r in requests]
        for one in done:
            if on_done:
                on_done(one)
        return done


def task(number: int) -> Task:
    return Task("retail", {"id": f"task-{number}", "user_scenario": {"instructions": "Anything."}})


def trajectory(
    reward: float, group: int, stop: StopReason | None = StopReason.USER_STOP, task_id: str = "task", segments: int = 1
) -> Trajectory:
    tokens = [TokenSegment([5, 6, 7], [False, True, True], [0.0, -1.0, -2.0], [(1, 3, 0)])] * segments
    metrics = EpisodeMetrics(task_id, "lookup", 1, 1, 1.0, 1.0, 1.0, True, False, True, True, 1.0, reward, stop and stop.value)
    transcript = Transcript(task_id, "retail", (), stop)
    return Trajectory(transcript, "lookup", tokens, RewardBreakdown(reward), metrics, "grpo", 0, group, 0)


def steps_of_batches(learner: FakeLearner) -> list[list[int]]:
    """The batches, by their samples' first tokens."""
    return [[s.token_ids[0] for s in batch] for batch in learner.batches]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(load(["+experiment=smoke", f"output_dir={tmp_path}"]))


def tracker(folder: RunFolder) -> Tracker:
    return Tracker(folder.path, TrackingSection(mode="none"), "test", {})


def metrics_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


# -- SFT


def test_an_epoch_covers_every_sample_once():
    for epoch in range(3):
        seen = [s.token_ids[0] for step in range(5) for s in batch_at(SAMPLES, epoch * 5 + step, size=2, seed=4)]
        assert sorted(seen) == list(range(10))


def test_a_remainder_waits_for_another_epoch_and_no_sample_is_seen_twice_in_one():
    seen = [s.token_ids[0] for step in range(3) for s in batch_at(SAMPLES, step, size=3, seed=0)]
    assert len(set(seen)) == 9
    later = [s.token_ids[0] for step in range(60) for s in batch_at(SAMPLES, step, size=3, seed=0)]
    assert set(later) == set(range(10))


def test_a_batch_depends_on_seed_and_step_only():
    def numbers(step: int, seed: int) -> list[int]:
        return [s.token_ids[0] for s in batch_at(SAMPLES, step, size=4, seed=seed)]

    alone = numbers(17, seed=3)
    for step in range(17):
        numbers(step, seed=3)
    assert numbers(17, seed=3) == alone
    assert [numbers(s, 3) for s in range(6)] != [numbers(s, 4) for s in range(6)]
    assert numbers(0, 3) != numbers(2, 3)  # another epoch, another order


def test_a_batch_larger_than_the_data_is_the_data():
    assert sorted(s.token_ids[0] for s in batch_at(SAMPLES, 5, size=64, seed=0)) == list(range(10))


def test_the_learning_rate_warms_up_and_falls_on_a_cosine():
    settings = SFTSection(lr=2.0, final_lr=0.1, warmup_steps=4, steps=100)
    assert [learning_rate(settings, step, 0.0) for step in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert learning_rate(settings, 50, 0.5) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(settings, 75, 0.75) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 - math.sqrt(0.5))))
    assert learning_rate(settings, 100, 1.0) == pytest.approx(0.2)
    assert learning_rate(SFTSection(lr=2.0, warmup_steps=0, steps=1), 0, 0.0) == pytest.approx(2.0)


def test_a_budget_ends_at_steps_or_seconds_whichever_comes_first():
    assert Budget(steps=10, seconds=100.0).progress(5, 20.0) == 0.5
    assert Budget(steps=10, seconds=100.0).progress(5, 80.0) == 0.8
    assert Budget(steps=None, seconds=100.0).progress(10**6, 25.0) == 0.25
    assert Budget(steps=10, seconds=None).progress(12, 10**6) == 1.0


def test_sft_samples_are_the_segments_with_their_masks():
    samples = samples_of([trajectory(1.0, 0, segments=2), trajectory(0.0, 0)])
    assert [(s.token_ids, s.loss_mask, s.advantages) for s in samples] == [([5, 6, 7], [False, True, True], None)] * 3


def test_sft_trains_on_each_step_s_batch_at_its_rate(folder: RunFolder):
    settings, learner = SFTSection(steps=7, batch_size=2, warmup_steps=2), FakeLearner()
    assert run_sft(settings, 3, SAMPLES, learner, folder, tracker(folder), FakeStop()) == 7
    assert learner.batches == [batch_at(SAMPLES, step, 2, seed=3) for step in range(7)]
    assert learner.rates == pytest.approx([learning_rate(settings, step, step / 7) for step in range(7)])
    lines = metrics_of(folder)
    assert [(line["stage"], line["step"]) for line in lines] == [("sft", step) for step in range(7)]
    assert lines[0]["metrics"]["tokens_per_s"] == 8.0
    assert folder.state.tokens["sft"] == 7 * 4


def test_sft_ends_when_its_seconds_are_spent(folder: RunFolder):
    folder.state.stage_seconds = 99.0  # spent before an interruption
    settings = SFTSection(seconds=99.2, batch_size=2)
    learner = FakeLearner()
    run_sft(settings, 0, SAMPLES, learner, folder, tracker(folder), FakeStop())
    assert folder.state.stage_seconds >= 99.2
    assert learner.rates[-1] < 0.2 * settings.lr


def test_an_interrupted_sft_goes_on_with_the_next_batch(folder: RunFolder):
    settings, stop = SFTSection(steps=8, batch_size=2), FakeStop()

    def ctrl_c(number: int) -> None:
        stop.raised = number == 2

    first, second = FakeLearner(ctrl_c), FakeLearner()
    with pytest.raises(Interrupted):
        run_sft(settings, 1, SAMPLES, first, folder, tracker(folder), stop)
    resumed, _ = RunFolder.resume(folder.path)
    assert resumed.state.step == 3
    assert resumed.state.checkpoint == "checkpoint-sft-00003"
    assert json.loads((resumed.path / "checkpoint-sft-00003" / "state.json").read_text()) == {"stage": "sft", "step": 3}
    assert run_sft(settings, 1, SAMPLES, second, resumed, tracker(resumed), FakeStop()) == 8
    assert first.batches + second.batches == [batch_at(SAMPLES, step, 2, seed=1) for step in range(8)]
    assert [line["step"] for line in metrics_of(resumed)] == list(range(8))


def test_the_held_out_loss_is_the_mean_over_loss_tokens_and_trains_nothing():
    class Known(FakeLearner):
        def logprobs(self, batch: Sequence[Sample], reference: bool = False) -> list[list[float]]:
            return [[0.0, -1.0, -2.0, -4.0][: len(s.token_ids)] for s in batch]

    learner = Known()
    samples = [Sample([1, 2, 3, 4], [True, False, True, True]), Sample([1, 2], [False, True])]
    assert heldout_loss(learner, samples) == pytest.approx((2.0 + 4.0 + 1.0) / 3)  # type: ignore[arg-type]
    assert learner.batches == []


def test_held_out_tasks_are_measured_now_and_then_and_at_the_end(folder: RunFolder):
    settings, learner = SFTSection(steps=7, batch_size=2, heldout_steps=3), FakeLearner()
    heldout = [Sample([90, 91], [False, True])]
    run_sft(settings, 0, SAMPLES, learner, folder, tracker(folder), FakeStop(), heldout=heldout)
    measured = {line["step"]: line["metrics"].get("heldout_loss") for line in metrics_of(folder)}
    assert measured == {0: None, 1: None, 2: 1.0, 3: None, 4: None, 5: 1.0, 6: 1.0}
    assert 90 not in itertools.chain(*steps_of_batches(learner))


def test_sft_saves_now_and_then_where_it_is_asked_to(folder: RunFolder):
    settings = SFTSection(steps=7, batch_size=2, checkpoint_steps=3)
    with pytest.raises(Broken), folder.timed("sft"):
        run_sft(settings, 1, SAMPLES, FakeLearner(break_at(5)), folder, tracker(folder), FakeStop())
    resumed, _ = RunFolder.resume(folder.path)
    assert (resumed.state.checkpoint, resumed.state.step) == ("checkpoint-sft-00003", 3)
    second = FakeLearner()
    run_sft(settings, 1, SAMPLES, second, resumed, tracker(resumed), FakeStop())
    assert second.batches == [batch_at(SAMPLES, step, 2, seed=1) for step in range(3, 7)]


# -- RFT


def rft_settings(**fields: Any) -> RFTSection:
    return RFTSection(**{"tasks_per_round": 2, "samples_per_task": 3, "rounds": 2, "batch_size": 2} | fields)


def episode(reward: float, task_id: str, call: str, stop: StopReason = StopReason.USER_STOP) -> Trajectory:
    """An episode of one call, its first token made of the call's name."""
    line = Message("tool", "done", action=Action(call))
    played = trajectory(reward, 0, stop, task_id)
    transcript = Transcript(task_id, "retail", (line,), stop)
    return replace(played, transcript=transcript, segments=[replace(played.segments[0], token_ids=[ord(call[0]), 6, 7])])


def test_good_episodes_are_kept_the_best_of_each_task_and_no_two_with_the_same_calls():
    played = [
        episode(0.9, "a", "look"),
        episode(1.0, "a", "cancel"),
        episode(1.0, "a", "cancel"),
        episode(0.95, "a", "exchange"),
        episode(0.8, "b", "look"),
        episode(1.0, "b", "look", StopReason.MAX_STEPS),
        episode(0.9, "c", "look"),
    ]
    kept, counts = keep(played, rft_settings(threshold=0.9, keep_per_task=2))
    assert [(t.transcript.task_id, t.reward.total, t.transcript.calls[0].name) for t in kept] == [
        ("a", 1.0, "cancel"),
        ("a", 0.95, "exchange"),
        ("c", 0.9, "look"),
    ]
    assert counts == {"accepted": 5.0, "acceptance": 5 / 7, "kept": 3.0, "kept_tasks": 2.0}


def test_a_round_takes_as_many_steps_as_its_epochs_have_batches():
    assert [steps_of(n, rft_settings(batch_size=4, epochs=2)) for n in (0, 1, 3, 4, 7, 8)] == [0, 2, 2, 2, 2, 4]


class CallingPool(FakePool):
    """Every request of a task makes another call; those of even tasks score 1."""

    def play(self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None = None) -> list[Trajectory]:
        first = len(self.played)
        self.played += requests
        done = []
        for number, request in enumerate(requests, first):
            even = int(request.task.id.removeprefix("task-")) % 2 == 0
            done.append(episode(1.0 if even else 0.0, request.task.id, chr(ord("a") + number)))
            if on_done:
                on_done(done[-1])
        return done


def play_rft(folder: RunFolder, learner: FakeLearner, pool: FakePool, sync: FakeSync, stop: Any = None, **fields: Any) -> int:
    return run_rft(
        rft_settings(**fields),
        2,
        [task(n) for n in range(4)],
        Parts(pool, learner, sync),  # type: ignore[arg-type]
        TrajectoryStore(folder.path / "trajectories"),
        folder,
        tracker(folder),
        stop or FakeStop(),
    )


def test_rft_trains_on_what_each_round_kept_and_samples_the_next_from_what_came_of_it(folder: RunFolder):
    learner, pool, sync = FakeLearner(), CallingPool(), FakeSync()
    # each of the tasks 0 to 3 is asked once in two rounds; 0 and 2 score, and two of three episodes of each are kept
    assert play_rft(folder, learner, pool, sync, epochs=2, lr=1.0, warmup_steps=2) == 4
    assert sorted(Counter(r.task.id for r in pool.played).items()) == [(f"task-{n}", 3) for n in range(4)]
    assert {(r.stage, r.step) for r in pool.played} == {("rft", 0), ("rft", 1)}
    trained = [s for batch in learner.batches for s in batch]
    assert len(trained) == 8 and len({tuple(s.token_ids) for s in trained}) == 4
    assert all(s.advantages is None for s in trained)
    assert learner.rates == [0.5, 1.0, 1.0, 1.0]
    rounds = [line["metrics"] for line in metrics_of(folder) if "kept" in line["metrics"]]
    assert [r["round"] for r in rounds] == [0.0, 1.0]
    assert sum(r["kept"] for r in rounds) == 4.0
    assert sum(r["acceptance"] for r in rounds) == pytest.approx(1.0)  # 6 of 12, in one round or in two
    assert sum(r["reward/mean"] for r in rounds) == pytest.approx(1.0)
    assert folder.state.tokens == {"rft_sampled": 24, "rft_trained": 16}
    store = TrajectoryStore(folder.path / "trajectories")
    assert [len(store.read("rft", number)) for number in range(2)] == [6, 6]
    assert 1 <= sync.runs <= 2


def test_a_round_in_which_nothing_was_good_enough_trains_nothing(folder: RunFolder):
    learner, sync = FakeLearner(), FakeSync()
    assert play_rft(folder, learner, CallingPool(), sync, threshold=2.0) == 0
    assert (learner.batches, sync.runs) == ([], 0)
    assert [line["metrics"]["kept"] for line in metrics_of(folder)] == [0.0, 0.0]


def test_rft_ends_with_its_budget_of_steps(folder: RunFolder):
    learner = FakeLearner()
    assert play_rft(folder, learner, CallingPool(), FakeSync(), epochs=10, steps=3) == 3
    assert len(learner.batches) == 3


@pytest.mark.parametrize("at", range(4))
def test_an_interrupted_rft_goes_on_within_its_round(folder: RunFolder, tmp_path: Path, at: int):
    whole = RunFolder.create(load(["+experiment=smoke", f"output_dir={tmp_path}/whole"]))
    unbroken, everything = FakeLearner(), CallingPool()
    play_rft(whole, unbroken, everything, FakeSync(), epochs=2)
    stop = FakeStop()

    def ctrl_c(number: int) -> None:
        stop.raised = number == at

    first, second, pool, rest = FakeLearner(ctrl_c), FakeLearner(), CallingPool(), CallingPool()
    with pytest.raises(Interrupted):
        play_rft(folder, first, pool, FakeSync(), stop, epochs=2)
    resumed, _ = RunFolder.resume(folder.path)
    assert resumed.state.step == at + 1
    rest.played = list(pool.played)  # names of calls go on
    play_rft(resumed, second, rest, FakeSync(), epochs=2)
    assert first.batches + second.batches == unbroken.batches
    assert rest.played == everything.played


def test_rft_that_broke_within_a_round_trains_on_the_same_episodes_again(folder: RunFolder):
    pool, again = CallingPool(), FakeLearner()
    broken = FakeLearner(break_at(1))
    with pytest.raises(Broken), folder.timed("rft"):
        play_rft(folder, broken, pool, FakeSync(), epochs=4)
    resumed, _ = RunFolder.resume(folder.path)
    assert resumed.state.step == 0
    played = len(pool.played)
    play_rft(resumed, again, pool, FakeSync(), epochs=4)
    assert again.batches[0] == broken.batches[0]
    assert len(pool.played) == 12 and played in (6, 12)


def test_ctrl_c_while_episodes_are_played_leaves_the_round_to_be_played_anew(folder: RunFolder):
    class Stopped(FakeStop):
        raised = True

    pool = CallingPool()
    with pytest.raises(Interrupted):
        play_rft(folder, FakeLearner(), pool, FakeSync(), Stopped())
    assert not list((folder.path / "trajectories").iterdir())
    assert RunFolder.resume(folder.path)[0].state.checkpoint is None


# -- GRPO


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
    assert samples[0].sampler_logprobs == [0.0, -1.0, -2.0]
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
    learner, sync, metrics = step_of(grpo_settings(updates_per_step=2), ALGORITHM, FakePool())
    assert [len(batch) for batch in learner.batches] == [3, 3]
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


# -- failures between checkpoints: the weights are those of the checkpoint, so the place must be the checkpoint's too


class Broken(Exception):
    pass


def break_at(number: int) -> Callable[[int], None]:
    def on_update(now: int) -> None:
        if now == number:
            raise Broken

    return on_update


def test_grpo_that_broke_between_checkpoints_goes_on_from_the_checkpoint(folder: RunFolder):
    with pytest.raises(Broken), folder.timed("grpo"):
        play_grpo(folder, FakeLearner(break_at(3)), FakePool(), checkpoint_steps=2)
    resumed, _ = RunFolder.resume(folder.path)
    assert (resumed.state.checkpoint, resumed.state.step) == ("checkpoint-grpo-00002", 2)


def test_sft_that_broke_before_its_first_checkpoint_starts_over(folder: RunFolder):
    with pytest.raises(Broken), folder.timed("sft"):
        run_sft(SFTSection(steps=8, batch_size=2), 1, SAMPLES, FakeLearner(break_at(3)), folder, tracker(folder), FakeStop())
    resumed, _ = RunFolder.resume(folder.path)
    assert (resumed.state.checkpoint, resumed.state.step) == (None, 0)
