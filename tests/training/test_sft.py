"""SFT as a loop: which batch at which step, and what an interruption leaves behind."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from stage_fakes import SAMPLES, Broken, FakeLearner, FakeStop, break_at, metrics_of, steps_of_batches, tracker, trajectory
from training.config import SFTSection
from training.learner.base import Sample
from training.run import Interrupted, RunFolder
from training.stages.sft import Budget, batch_at, heldout_loss, learning_rate, run_sft, samples_of, spread


def test_an_epoch_covers_every_sample_once():
    for epoch in range(3):
        seen = [s.token_ids[0] for step in range(5) for s in batch_at(SAMPLES, epoch * 5 + step, size=2, seed=4)]
        assert sorted(seen) == list(range(10))


def test_an_epoch_s_last_batch_has_what_is_left():
    batches = [batch_at(SAMPLES, step, size=3, seed=0) for step in range(8)]
    assert [len(batch) for batch in batches] == [3, 3, 3, 1, 3, 3, 3, 1]
    for epoch in (batches[:4], batches[4:]):
        assert sorted(s.token_ids[0] for batch in epoch for s in batch) == list(range(10))


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


@pytest.mark.parametrize("seed", range(5))
def test_every_beginning_of_an_epoch_has_of_each_kind_its_share(seed: int):
    kinds = ["lookup"] * 60 + ["return"] * 30 + ["official"] * 7
    order = spread(kinds, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(kinds)))
    for kind, number in Counter(kinds).items():
        seen = np.cumsum([kinds[at] == kind for at in order])
        assert np.abs(seen - np.arange(1, len(kinds) + 1) * number / len(kinds)).max() < 2
    assert order != spread(kinds, np.random.default_rng(seed + 1))
    assert order[:8] != sorted(order[:8])


def test_the_kinds_of_a_run_take_turns(folder: RunFolder):
    kinds, learner = ["a"] * 5 + ["b"] * 5, FakeLearner()
    run_sft(SFTSection(steps=5, batch_size=2), 3, SAMPLES, learner, folder, tracker(folder), FakeStop(), kinds=kinds)
    assert learner.batches == [batch_at(SAMPLES, step, 2, seed=3, kinds=kinds) for step in range(5)]
    assert sorted(s.token_ids[0] for batch in learner.batches for s in batch) == list(range(10))


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
    assert [(list(s.token_ids), list(s.loss_mask), s.advantages) for s in samples] == [([5, 6, 7], [False, True, True], None)] * 3


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
    settings = SFTSection(seconds=99.2, batch_size=2, heldout_steps=10**6)
    learner = FakeLearner()
    run_sft(settings, 0, SAMPLES, learner, folder, tracker(folder), FakeStop(), heldout=SAMPLES)
    assert folder.state.stage_seconds >= 99.2
    assert learner.rates[-1] < 0.2 * settings.lr
    assert [line["step"] for line in metrics_of(folder) if "heldout_loss" in line["metrics"]] == [folder.state.step - 1]


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
        def logprobs(self, batch: Sequence[Sample], reference: bool = False, temperature: float = 1.0) -> list[list[float]]:
            assert temperature == 1.0
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


# The weights are those of the checkpoint, so the place must be the checkpoint's too.
def test_sft_that_broke_before_its_first_checkpoint_starts_over(folder: RunFolder):
    with pytest.raises(Broken), folder.timed("sft"):
        run_sft(SFTSection(steps=8, batch_size=2), 1, SAMPLES, FakeLearner(break_at(3)), folder, tracker(folder), FakeStop())
    resumed, _ = RunFolder.resume(folder.path)
    assert (resumed.state.checkpoint, resumed.state.step) == (None, 0)
