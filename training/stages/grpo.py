"""GRPO on whole episodes.

A step: sample groups of episodes, score them, compare each with its group, update, give the engines the new weights and prove
it. On-policy (one step's episodes are trained on before the next are sampled), dense action reward as outcome, no critic.
Truncated importance weights correct for the engine's arithmetic; groups whose members all scored the same carry no signal and
are left out, or other groups are played in their place (both counted); endings that are not the agent's fault are left out of the
advantage (counted).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from envs.types import Task
from rollouts.scheduler import RolloutPool
from rollouts.store import TrajectoryStore
from rollouts.trajectory import EpisodeRequest, Trajectory
from training.config import AlgorithmSection, GRPOSection
from training.credit import token_advantages, turn_advantages
from training.learner.base import Sample
from training.learner.group import LearnerGroup
from training.loss import advantages, kl_per_token
from training.metrics import engine_metrics, episode_metrics, is_scored
from training.progress import bar
from training.run import Interrupted, RunFolder, StopSignal
from training.sampling import requests_at as group_requests
from training.sampling import spare_groups
from training.stages.sft import Budget
from training.sync import WeightSync
from training.tracking import Tracker


@dataclass(frozen=True)
class Parts:
    """What a step needs: who plays, who learns, how weights travel; and what each turn of an episode earned, where credit is
    given by turn."""

    pool: RolloutPool
    learner: LearnerGroup
    sync: WeightSync
    credit: Callable[[EpisodeRequest, Trajectory], Sequence[float]] | None = None


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


def advantages_of(
    scored: Sequence[Trajectory], algorithm: AlgorithmSection, earned: Sequence[Sequence[float]] | None = None
) -> list[np.ndarray]:
    """Of each episode one advantage or, from what each of its turns `earned`, one for every turn. An episode that is alone in
    its group has nothing to be compared with, and 0, except where whole batches are compared (`reinforce_plus_plus`)."""
    groups = [t.group for t in scored]
    if earned is not None:
        return [np.array(a) for a in turn_advantages(earned, groups, algorithm.normalize_by_std)]
    sizes = Counter(groups)
    compared = [i for i, g in enumerate(groups) if sizes[g] > 1 or algorithm.advantage == "reinforce_plus_plus"]
    values = np.zeros((len(scored), 1))
    if compared:
        values[compared, 0] = advantages(
            [scored[i].reward.total for i in compared],
            [groups[i] for i in compared],
            algorithm.advantage,
            algorithm.normalize_by_std,
            [scored[i].sampled_tokens for i in compared],
        )
    return list(values)


def groups_with_signal(scored: Sequence[Trajectory], values: Sequence[np.ndarray]) -> set[int]:
    """Groups in which some advantage is not 0."""
    return {t.group for t, value in zip(scored, values, strict=True) if _has_signal(value)}


def _has_signal(value: np.ndarray) -> bool:
    return bool((np.abs(value) > 1e-6).any())


def samples_of(
    trajectories: Sequence[Trajectory],
    settings: GRPOSection,
    algorithm: AlgorithmSection,
    earned: Sequence[Sequence[float]] | None = None,
) -> tuple[list[Sample], dict[str, float]]:
    """Trajectories → samples with advantages, and what was left out. `earned`: what each turn of each trajectory earned, where
    credit is given by turn."""
    numbers = [i for i, t in enumerate(trajectories) if is_scored(t)]
    scored = [trajectories[i] for i in numbers]
    if not scored:
        return [], {"excluded": float(len(trajectories)), "flat_groups": 0.0}
    rewards = np.array([t.reward.total for t in scored])
    groups = np.array([t.group for t in scored])
    raw = advantages_of(scored, algorithm, None if earned is None else [earned[i] for i in numbers])
    values = [np.where(v < 0, v * settings.negative_weight, v) for v in raw]
    kept = _spread(rewards, groups, settings.train_per_group)
    if settings.drop_flat_groups:  # nothing is learnt from a zero advantage
        kept &= np.array([_has_signal(v) for v in values])
    samples = []
    for trajectory, value, keep in zip(scored, values, kept, strict=True):
        if not keep:
            continue
        if earned is None:
            rows = [[float(value[0])] * len(s.token_ids) for s in trajectory.segments]
        else:
            rows = token_advantages(trajectory, value.tolist())
        samples += [
            Sample(s.token_ids, s.loss_mask, advantages=row, sampler_logprobs=s.logprobs)
            for s, row in zip(trajectory.segments, rows, strict=True)
        ]
    names = sorted(set(groups.tolist()))
    return samples, {
        "excluded": float(len(trajectories) - len(scored)),
        "flat_groups": float(len(names) - len(groups_with_signal(scored, raw))),
        "trained_episodes": float(kept.sum()),
        "reward/group_std": float(np.mean([np.std(rewards[groups == g]) for g in names])),
        "reward/group_variance": float(np.mean([np.var(rewards[groups == g]) for g in names])),
        "advantage/abs_mean": float(np.abs(np.concatenate(values)).mean()),
    }


def _spread(rewards: np.ndarray, groups: np.ndarray, keep: int | None) -> np.ndarray:
    """Which `keep` episodes of each group to train on: those whose rewards vary most (PODS, arXiv 2504.13818).

    The subset of greatest variance is always some of the worst and some of the best. Advantages stay those of the whole group.
    """
    kept = np.ones(len(rewards), bool)
    if keep is None:
        return kept
    for group in set(groups.tolist()):
        members = np.flatnonzero(groups == group)
        if len(members) > keep:
            ranked = members[np.argsort(rewards[members], kind="stable")]
            subsets = [np.concatenate([ranked[:low], ranked[len(ranked) - (keep - low) :]]) for low in range(keep + 1)]
            kept[members] = False
            kept[max(subsets, key=lambda subset: rewards[subset].var())] = True
    return kept


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
    begin = time.monotonic()
    trajectories, earned, refill = play_groups(parts, requests, algorithm, on_done, spare)
    played = time.monotonic()
    charged, kl = charge_kl(trajectories, parts.learner, algorithm)
    samples, left_out = samples_of(charged, settings, algorithm, earned)
    samples = with_logprobs(samples, parts.learner, settings, algorithm)
    prepared = time.monotonic()
    metrics: dict[str, float] = {}
    if samples:
        size = -(-len(samples) // settings.updates_per_step)
        order = np.random.default_rng(requests[0].seed).permutation(len(samples)) if settings.updates_per_step > 1 else None
        shuffled = samples if order is None else [samples[i] for i in order]
        updates = [
            parts.learner.update(shuffled[at : at + size], algorithm.loss_config(), lr) for at in range(0, len(samples), size)
        ]
        metrics = {name: float(np.mean([u[name] for u in updates])) for name in updates[0]}
        metrics["tokens"] = float(sum(u["tokens"] for u in updates))
        metrics["unique_tokens"] = float(sum(u["unique_tokens"] for u in updates))
        metrics.pop("seconds")
    updated = time.monotonic()
    if samples:
        metrics |= parts.sync.run().metrics()
    end = time.monotonic()
    scoring = sum(t.timings.get("reward", 0.0) for t in trajectories) / parts.pool.workers
    metrics |= left_out | refill | kl | episode_metrics(trajectories)
    metrics |= engine_metrics(trajectories, played - begin, parts.pool.places)
    metrics |= {
        "staleness/mean": 0.0,
        "staleness/max": 0.0,
        "seconds/rollout": played - begin - scoring,
        "seconds/reward": scoring,
        "seconds/prepare": prepared - played,
        "seconds/update": updated - prepared,
        "seconds/sync": end - updated,
        "seconds/step": end - begin,
        "tokens_per_s": metrics.get("tokens", 0.0) / (end - begin),
        "lr": lr,
    }
    return trajectories, metrics


def play_groups(
    parts: Parts,
    requests: Sequence[EpisodeRequest],
    algorithm: AlgorithmSection,
    on_done: Any,
    spare: Iterable[Sequence[EpisodeRequest]],
) -> tuple[list[Trajectory], list[Sequence[float]] | None, dict[str, float]]:
    """Plays the requests, and spare groups for those without a signal until there are none of either.

    Returns every episode, what its turns earned (None where credit is the outcome's), and how many groups were `refill/played`
    and are still `refill/missing`; no counts where no group could be spared.
    """
    trajectories: list[Trajectory] = []
    earned: list[Sequence[float]] | None = None if parts.credit is None else []
    wanted, others = len({r.group for r in requests}), iter(spare)
    refilled, missing, asked = 0, wanted, list(requests)
    while asked:
        new = parts.pool.play(asked, on_done)
        trajectories += new
        if earned is not None and parts.credit is not None:
            earned += [parts.credit(request, trajectory) for request, trajectory in zip(asked, new, strict=True)]
        numbers = [i for i, t in enumerate(trajectories) if is_scored(t)]
        scored = [trajectories[i] for i in numbers]
        of_turns = None if earned is None else [earned[i] for i in numbers]
        missing = wanted - len(groups_with_signal(scored, advantages_of(scored, algorithm, of_turns) if scored else []))
        groups = list(islice(others, missing))
        refilled += len(groups)
        asked = [request for group in groups for request in group]
    counts = {"refill/played": float(refilled), "refill/missing": float(missing)} if refilled else {}
    return trajectories, earned, counts


def charge_kl(
    trajectories: list[Trajectory], learner: LearnerGroup, algorithm: AlgorithmSection
) -> tuple[list[Trajectory], dict[str, float]]:
    """The trajectories with `kl_coef` × KL to the reference, summed over their sampled tokens, taken off their rewards, where
    `kl_in=reward` asks for it; and what it came to."""
    if algorithm.kl_in != "reward" or algorithm.kl_coef == 0:
        return trajectories, {}
    segments = [Sample(s.token_ids, s.loss_mask) for t in trajectories for s in t.segments]
    now, before = learner.logprobs(segments), learner.logprobs(segments, reference=True)
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
        old = learner.logprobs(samples)
        samples = [replace(s, old_logprobs=o) for s, o in zip(samples, old, strict=True)]
    if samples and algorithm.kl_coef > 0 and algorithm.kl_in == "loss":
        reference = learner.logprobs(samples, reference=True)
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
    with bar(stage, 1.0) as progress_bar:
        last_step_s, ended = 0.0, time.monotonic()
        # A step that would end far outside the budget is not begun.
        while budget.progress(state.step, time.monotonic() - begin + 0.5 * last_step_s) < 1.0:
            requests = requests_at(settings, tasks, state.step, seed, stage)
            lr = settings.lr * min(1.0, (state.step + 1) / max(1, settings.warmup_steps))
            played = 0

            def on_done(_: Trajectory, total: int = len(requests)) -> None:
                nonlocal played
                played += 1
                progress_bar.update(
                    budget.progress(state.step, time.monotonic() - begin),
                    f"step {state.step + 1}: {played}/{max(played, total)} episodes",
                )

            spare = spare_groups(tasks, requests, seed, settings.refill)
            idle_s = time.monotonic() - ended
            trajectories, metrics = train_step(parts, requests, settings, algorithm, lr, on_done, spare)
            metrics["seconds/idle"], ended = idle_s, time.monotonic()
            store.write(stage, state.step, trajectories)
            folder.count("grpo_sampled", sum(t.sampled_tokens for t in trajectories))
            folder.count("grpo_trained", metrics.get("tokens", 0.0))
            tracker.log(stage, state.step, metrics, trajectories)
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
