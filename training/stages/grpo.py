"""GRPO on whole episodes.

A step: sample groups of episodes, score them, compare each with its group, update, give the engines the new weights and prove
it. Dense action reward as outcome, no critic. On-policy (one step's episodes are trained on before the next are sampled) unless
`rollout.mode` lets the engines play ahead (ahead.py). Truncated importance weights correct for the engine's arithmetic and for
older weights; groups whose members all scored the same carry no signal and are left out, or other groups are played in their
place (both counted); endings that are not the agent's fault are left out of the advantage (counted).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from envs.types import Task
from rollouts.scheduler import RolloutPool
from rollouts.store import TrajectoryStore
from rollouts.trajectory import EpisodeRequest, Trajectory
from training.advantages import advantages_of, groups_with_signal, is_scored, samples_of
from training.config import AlgorithmSection, GRPOSection, RolloutSection
from training.learner.base import Sample
from training.learner.group import LearnerGroup
from training.loss import kl_per_token
from training.metrics import engine_metrics, episode_metrics
from training.progress import bar, console
from training.run import Interrupted, RunFolder, StopSignal
from training.sampling import requests_at as group_requests
from training.sampling import spare_groups
from training.stages.ahead import Ahead
from training.stages.sft import Budget
from training.sync import WeightSync
from training.tracking import Tracker


@dataclass(frozen=True)
class Parts:
    """What a step needs: who plays, who learns, how weights travel; what each turn of an episode earned, where credit is given
    by turn; and how far episodes are played ahead of the updates."""

    pool: RolloutPool
    learner: LearnerGroup
    sync: WeightSync
    credit: Callable[[EpisodeRequest, Trajectory], Sequence[float]] | None = None
    rollout: RolloutSection = field(default_factory=RolloutSection)


@dataclass(frozen=True)
class Batch:
    """A step's episodes, played in `seconds`.

    asked: The requests, as many as trajectories. earned: What the turns of each earned; None where credit is the outcome's.
    refill: How many groups were `refill/played` and are still `refill/missing`; empty where none was played in another's place.
    """

    asked: Sequence[EpisodeRequest]
    trajectories: list[Trajectory]
    earned: list[Sequence[float]] | None
    refill: dict[str, float]
    seconds: float


def requests_at(settings: GRPOSection, tasks: Sequence[Task], step: int, seed: int, stage: str = "grpo") -> list[EpisodeRequest]:
    """The groups of a step."""
    return group_requests(
        tasks,
        step,
        seed,
        groups=settings.tasks_per_step,
        samples=settings.samples_per_task,
        temperature=settings.temperature,
        stage=stage,
    )


def begin_optimizer(learner: LearnerGroup, settings: GRPOSection) -> None:
    """The optimizer as the stage's first step finds it."""
    if settings.adam_second_moments == "keep":
        learner.forget_momentum()
    else:
        learner.reset_optimizer()


def train_step(
    parts: Parts,
    requests: Sequence[EpisodeRequest],
    settings: GRPOSection,
    algorithm: AlgorithmSection,
    lr: float,
    on_done: Any = None,
    spare: Iterable[Sequence[EpisodeRequest]] = (),
) -> tuple[list[Trajectory], dict[str, float]]:
    """One GRPO step: rollout, advantage, update(s), sync. Returns the episodes and the step's metrics.

    `spare`: further groups, played in place of those without a signal.
    """
    batch = play_groups(parts, requests, algorithm, on_done, spare)
    return batch.trajectories, train_on(batch, parts, settings, algorithm, lr, batch.seconds)


def train_on(
    batch: Batch,
    parts: Parts,
    settings: GRPOSection,
    algorithm: AlgorithmSection,
    lr: float,
    waited_s: float,
    settle: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Advantage, update(s), sync; returns the step's metrics.

    waited_s: How long the learner waited for the episodes. settle: Waits until the weights may change.
    """
    begin = time.monotonic()
    charged, kl = charge_kl(batch.trajectories, parts.learner, algorithm, settings.temperature)
    samples, left_out = samples_of(charged, settings, algorithm, batch.earned)
    samples = with_logprobs(samples, parts.learner, settings, algorithm)
    prepared = time.monotonic()
    metrics: dict[str, float] = {}
    if samples:
        size = -(-len(samples) // settings.updates_per_step)
        order = np.random.default_rng(batch.asked[0].seed).permutation(len(samples)) if settings.updates_per_step > 1 else None
        shuffled = samples if order is None else [samples[i] for i in order]
        updates = [
            parts.learner.update(shuffled[at : at + size], algorithm.loss_config(), lr, settings.temperature)
            for at in range(0, len(samples), size)
        ]
        metrics = {name: float(np.mean([u[name] for u in updates])) for name in updates[0]}
        metrics["tokens"] = float(sum(u["tokens"] for u in updates))
        metrics["unique_tokens"] = float(sum(u["unique_tokens"] for u in updates))
        metrics.pop("seconds")
    updated = settled = time.monotonic()
    metrics |= staleness(batch, parts.sync.version)
    if samples:
        settle()
        settled = time.monotonic()
        metrics |= parts.sync.run().metrics()
    end = time.monotonic()
    metrics |= left_out | batch.refill | kl | episode_metrics(batch.trajectories)
    step_s = waited_s + end - begin
    # Played ahead, several steps share the engines, each for longer than a step takes; in the long run one is played in the
    # time in which one is trained.
    played_s = batch.seconds if parts.rollout.mode == "sync" else step_s
    metrics |= engine_metrics(batch.trajectories, played_s, parts.pool.places)
    # Scoring is a part of the time that was waited for, where it was waited for.
    scoring = min(waited_s, sum(t.timings.get("reward", 0.0) for t in batch.trajectories) / parts.pool.workers)
    return metrics | {
        "seconds/rollout": waited_s - scoring + settled - updated,
        "seconds/reward": scoring,
        "seconds/prepare": prepared - begin,
        "seconds/update": updated - prepared,
        "seconds/sync": end - settled,
        "seconds/step": step_s,
        "tokens_per_s": metrics.get("tokens", 0.0) / step_s,
        "lr": lr,
    }


def staleness(batch: Batch, version: int) -> dict[str, float]:
    """How many weight versions the sampled tokens are older than `version`, which they are trained on; how many of the episodes
    were sampled with several; and how many of those asked for are not there."""
    tokens: Counter[int] = Counter()
    for trajectory in batch.trajectories:
        tokens.update({version - sampled_with: n for sampled_with, n in trajectory.tokens_by_version.items()})
    return {
        "staleness/mean": sum(age * n for age, n in tokens.items()) / max(1, tokens.total()),
        "staleness/max": float(max(tokens, default=0)),
        "staleness/mixed": float(np.mean([len(t.tokens_by_version) > 1 for t in batch.trajectories])),
        "staleness/discarded": float(len(batch.asked) - len(batch.trajectories)),
    }


def play_groups(
    parts: Parts,
    requests: Sequence[EpisodeRequest],
    algorithm: AlgorithmSection,
    on_done: Any,
    spare: Iterable[Sequence[EpisodeRequest]],
) -> Batch:
    """Plays the requests, and spare groups for those without a signal until there are none of either."""
    begin = time.monotonic()
    played: list[Trajectory] = []
    earned: list[Sequence[float]] | None = None if parts.credit is None else []
    wanted, others = len({r.group for r in requests}), iter(spare)
    asked, refilled, missing, wave = list(requests), 0, wanted, list(requests)
    while wave:
        new = parts.pool.play(wave, on_done)
        played += new
        if earned is not None and parts.credit is not None:
            earned += [parts.credit(request, trajectory) for request, trajectory in zip(wave, new, strict=True)]
        numbers = [i for i, t in enumerate(played) if is_scored(t)]
        scored = [played[i] for i in numbers]
        of_turns = None if earned is None else [earned[i] for i in numbers]
        missing = wanted - len(groups_with_signal(scored, advantages_of(scored, algorithm, of_turns) if scored else []))
        groups = list(islice(others, missing))
        refilled += len(groups)
        wave = [request for group in groups for request in group]
        asked += wave
    counts = {"refill/played": float(refilled), "refill/missing": float(missing)} if refilled else {}
    return Batch(asked, played, earned, counts, time.monotonic() - begin)


def charge_kl(
    trajectories: list[Trajectory], learner: LearnerGroup, algorithm: AlgorithmSection, temperature: float = 1.0
) -> tuple[list[Trajectory], dict[str, float]]:
    """The trajectories with `kl_coef` × KL to the reference, summed over their sampled tokens, taken off their rewards, where
    `kl_in=reward` asks for it; and what it came to."""
    if algorithm.kl_in != "reward" or algorithm.kl_coef == 0:
        return trajectories, {}
    segments = [Sample(s.token_ids, s.loss_mask) for t in trajectories for s in t.segments]
    now, before = (learner.logprobs(segments, reference, temperature) for reference in (False, True))
    sums = iter(
        sum(value for value, own in zip(kl_per_token(a, b, algorithm.kl_estimator), s.loss_mask, strict=True) if own)
        for s, a, b in zip(segments, now, before, strict=True)
    )
    of_episode = [sum(next(sums) for _ in t.segments) for t in trajectories]
    charged = [
        replace(t, reward=replace(t.reward, total=t.reward.total - algorithm.kl_coef * kl))
        for t, kl in zip(trajectories, of_episode, strict=True)
    ]
    tokens = max(1, sum(t.sampled_tokens for t in trajectories))
    cost = algorithm.kl_coef * float(np.mean(of_episode))
    return charged, {"kl_reference": sum(of_episode) / tokens, "reward/kl_cost": cost}


def with_logprobs(
    samples: list[Sample], learner: LearnerGroup, settings: GRPOSection, algorithm: AlgorithmSection
) -> list[Sample]:
    """Adds the learner's own log-probs where several updates share a batch, and the reference's where KL is paid for."""
    if samples and settings.updates_per_step > 1:
        old = learner.logprobs(samples, temperature=settings.temperature)
        samples = [replace(s, old_logprobs=o) for s, o in zip(samples, old, strict=True)]
    if samples and algorithm.kl_coef > 0 and algorithm.kl_in == "loss":
        reference = learner.logprobs(samples, reference=True, temperature=settings.temperature)
        samples = [replace(s, reference_logprobs=r) for s, r in zip(samples, reference, strict=True)]
    return samples


def run_grpo(
    settings: GRPOSection,
    algorithm: AlgorithmSection,
    seed: int,
    tasks: Sequence[Task],
    parts: Parts,
    store: TrajectoryStore,
    folder: RunFolder,
    tracker: Tracker,
    stop: StopSignal,
    stage: str = "grpo",
) -> int:
    """Steps until the budget is spent; returns their number. On Ctrl-C saves a checkpoint and raises Interrupted."""
    budget = Budget(settings.steps, settings.seconds)
    state = folder.state
    begin = time.monotonic() - state.stage_seconds

    def play(step: int) -> Batch:
        requests = requests_at(settings, tasks, step, seed, stage)
        played = 0

        def on_done(_: Trajectory) -> None:
            nonlocal played
            played += 1
            if step == state.step:
                progress_bar.update(
                    budget.progress(step, time.monotonic() - begin),
                    f"step {step + 1}: {played}/{max(played, len(requests))} episodes",
                )

        return play_groups(parts, requests, algorithm, on_done, spare_groups(tasks, requests, seed, settings.refill))

    def forget(step: int) -> None:
        tokens = sum(t.sampled_tokens for t in store.read(stage, step))
        store.remove(stage, step)
        folder.count("grpo_discarded", tokens)
        console.print(f"  step {step + 1} was begun and is not trained on: {tokens} sampled tokens are discarded")

    ahead = Ahead(play, parts.rollout, first=state.step, end=settings.steps, cancel=lambda: parts.pool.cancel(), forget=forget)
    with bar(stage, 1.0) as progress_bar, ahead:
        last_step_s, ended = 0.0, time.monotonic()
        # A step that would end far outside the budget is not begun.
        while budget.progress(state.step, time.monotonic() - begin + 0.5 * last_step_s) < 1.0:
            lr = settings.lr * min(1.0, (state.step + 1) / max(1, settings.warmup_steps))
            asked = time.monotonic()
            batch = ahead.take(state.step)
            metrics = train_on(batch, parts, settings, algorithm, lr, time.monotonic() - asked, ahead.settle)
            metrics |= {"seconds/idle": asked - ended, "seconds/engines_idle": ahead.idle_s()}
            ended = time.monotonic()
            ahead.trained()
            store.write(stage, state.step, batch.trajectories)
            folder.count("grpo_sampled", sum(t.sampled_tokens for t in batch.trajectories))
            folder.count("grpo_trained", metrics.get("tokens", 0.0))
            tracker.log(stage, state.step, metrics, batch.trajectories)
            last_step_s = metrics["seconds/step"]
            state.step += 1
            state.stage_seconds = time.monotonic() - begin
            folder.note(stage, metrics)
            progress_bar.update(
                budget.progress(state.step, state.stage_seconds),
                f"step {state.step} reward {metrics['reward/mean']:+.3f} official {metrics['batch_reward/official']:.2f}",
            )
            if stop.raised or state.step % settings.checkpoint_steps == 0:
                folder.checkpoint(f"grpo-{state.step:05d}", parts.learner, {"stage": "grpo", "step": state.step})
            if stop.raised:
                raise Interrupted
    return state.step
