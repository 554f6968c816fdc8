"""RFT as a loop: what is kept of a round, what is trained on, and what an interruption leaves behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.types import Action, Message, StopReason, Transcript
from rollouts.store import TrajectoryStore
from rollouts.trajectory import EpisodeRequest, Trajectory
from stage_fakes import Broken, FakeLearner, FakePool, FakeStop, FakeSync, break_at, metrics_of, task, tracker, trajectory
from training.compose import load
from training.config import RFTSection
from training.run import Interrupted, RunFolder
from training.stages.grpo import Parts
from training.stages.rft import keep, run_rft, steps_of


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
    assert [steps_of(n, rft_settings(batch_size=4, epochs=2)) for n in (0, 1, 3, 4, 7, 8)] == [0, 2, 2, 2, 4, 4]


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


def test_a_round_that_was_played_is_trained_on_and_none_is_begun_after_the_seconds(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    now = 0.0

    class SlowPool(CallingPool):
        def play(self, requests: Sequence[EpisodeRequest], on_done: Any = None) -> list[Trajectory]:
            nonlocal now
            now += 20.0
            return super().play(requests, on_done)

    monkeypatch.setattr("training.stages.rft.time", SimpleNamespace(monotonic=lambda: now))
    learner, pool = FakeLearner(), SlowPool()
    assert play_rft(folder, learner, pool, FakeSync(), seconds=10.0) == len(learner.batches) > 0
    assert {r.step for r in pool.played} == {0}
    assert play_rft(folder, FakeLearner(), pool, FakeSync(), seconds=10.0) == len(learner.batches)  # resumed: nothing is left


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
