"""Supervised fine-tuning on the expert's episodes, or on recorded ones.

Loss on the policy's own tokens only, batches of whole episodes packed by prefix tree, AdamW with warm-up and a cosine over
the budget (steps or seconds, whichever is tighter). Kept simple on purpose: no sequence cutting, no padding, no dropout.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rollouts.trajectory import Trajectory
from training.config import SFTSection
from training.learner.base import Sample
from training.learner.group import LearnerGroup
from training.progress import bar
from training.run import Interrupted, RunFolder, StopSignal
from training.tracking import Tracker


@dataclass(frozen=True)
class Budget:
    """How far a stage is: the greater of its share of steps and of seconds."""

    steps: int | None
    seconds: float | None

    def progress(self, step: int, seconds: float) -> float:
        shares = [step / self.steps if self.steps else 0.0, seconds / self.seconds if self.seconds else 0.0]
        return min(1.0, max(shares))


def samples_of(trajectories: Sequence[Trajectory]) -> list[Sample]:
    """One sample for each token segment."""
    return [Sample(s.token_ids, s.loss_mask) for t in trajectories for s in t.segments]


def kinds_of(trajectories: Sequence[Trajectory]) -> list[str]:
    """The task kind of each sample of `samples_of`."""
    return [t.kind for t in trajectories for _ in t.segments]


def batch_at(samples: Sequence[Sample], step: int, size: int, seed: int, kinds: Sequence[str] = ()) -> list[Sample]:
    """The batch of a step: a seeded order per epoch, so the position is the step and nothing else. See `spread` for `kinds`.

    An epoch's last batch has what is left.
    """
    per_epoch = math.ceil(len(samples) / size)
    order = _epoch(tuple(kinds) or ("",) * len(samples), seed, step // per_epoch)
    at = (step % per_epoch) * size
    return [samples[i] for i in order[at : at + size]]


@lru_cache(maxsize=1)
def _epoch(kinds: tuple[str, ...], seed: int, epoch: int) -> list[int]:
    """An epoch's order, made once and not for every step: half a second for 100,000 episodes."""
    return spread(kinds, np.random.default_rng([seed, epoch]))


def spread(kinds: Sequence[str], rng: np.random.Generator) -> list[int]:
    """A random order of the positions. However short a beginning, each kind has its share of it, give or take one or two.

    A run on a budget of minutes sees a beginning only; drawn without regard to kinds, that of the main run had 13 returns and 2
    changes of the customer's own address among 48 episodes, and the model could not do the latter.
    """
    number, seen = Counter(kinds), Counter[str]()
    places = []
    for at in rng.permutation(len(kinds)):
        kind = kinds[at]
        places.append(((seen[kind] + rng.random()) / number[kind], int(at)))  # anywhere in its kind's next slot
        seen[kind] += 1
    return [at for _, at in sorted(places)]


def heldout_loss(learner: LearnerGroup, samples: Sequence[Sample]) -> float:
    """Mean negative log-likelihood of the samples' loss tokens under the present weights; nothing is trained."""
    total, tokens = 0.0, 0
    for sample, logprobs in zip(samples, learner.logprobs(samples), strict=True):
        mask = np.asarray(sample.loss_mask, bool)[1:]
        total -= float(np.asarray(logprobs, np.float64)[1:][mask].sum())
        tokens += int(mask.sum())
    return total / tokens


def learning_rate(settings: SFTSection, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine from `lr` to `lr` × `final_lr`."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    return settings.lr * warm * (settings.final_lr + (1 - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def run_sft(
    settings: SFTSection,
    seed: int,
    samples: Sequence[Sample],
    learner: LearnerGroup,
    folder: RunFolder,
    tracker: Tracker,
    stop: StopSignal,
    stage: str = "sft",
    schedule: Callable[[int, float], float] | None = None,
    heldout: Sequence[Sample] = (),
    kinds: Sequence[str] = (),
) -> int:
    """Trains until the budget is spent; returns the number of steps. On Ctrl-C saves a checkpoint and raises Interrupted.

    The loss on `heldout` is measured after every `heldout_steps` and after the last step. The samples' `kinds` take turns.
    """
    budget = Budget(settings.steps, settings.seconds)
    rate = schedule or (lambda step, progress: learning_rate(settings, step, progress))
    state = folder.state
    begin = time.monotonic() - state.stage_seconds
    with bar(stage, 1.0) as progress_bar:
        while budget.progress(state.step, state.stage_seconds) < 1.0:
            progress = budget.progress(state.step, time.monotonic() - begin)
            batch = batch_at(samples, state.step, settings.batch_size, seed, kinds)
            metrics = learner.update(batch, None, rate(state.step, progress))
            metrics["tokens_per_s"] = metrics["tokens"] / metrics["seconds"]
            folder.count(stage, metrics["tokens"])
            state.step += 1
            state.stage_seconds = time.monotonic() - begin
            ended = budget.progress(state.step, state.stage_seconds) >= 1.0
            if heldout and (ended or state.step % settings.heldout_steps == 0):
                metrics["heldout_loss"] = heldout_loss(learner, heldout)
                state.stage_seconds = time.monotonic() - begin
            tracker.log(stage, state.step - 1, metrics)
            folder.note(stage, metrics)
            progress_bar.update(
                budget.progress(state.step, state.stage_seconds),
                f"step {state.step} loss {metrics['loss']:.3f} {metrics['tokens_per_s']:.0f} tokens/s",
            )
            due = settings.checkpoint_steps is not None and state.step % settings.checkpoint_steps == 0
            if stop.raised or (due and not ended):
                folder.checkpoint(f"{stage}-{state.step:05d}", learner, {"stage": stage, "step": state.step})
            if stop.raised:
                raise Interrupted
    return state.step
