"""GRPO on whole episodes.

A step: sample groups of episodes, score them, compare each with its group, update, give the engines the new weights and prove
it. On-policy (one step's episodes are trained on before the next are sampled), dense action reward as outcome, no critic.
Truncated importance weights correct for the engine's arithmetic; groups whose members all scored the same carry no signal and
are left out (counted); endings that are not the agent's fault are left out of the advantage (counted).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from envs.types import Task
from rollouts.scheduler import RolloutPool
from rollouts.store import TrajectoryStore
from rollouts.trajectory import EpisodeRequest, Trajectory, user_usage
from training.config import AlgorithmSection, GRPOSection
from training.learner.base import Sample
from training.learner.group import LearnerGroup
from training.loss import advantages
from training.progress import bar
from training.run import Interrupted, RunFolder, StopSignal
from training.stages.sft import Budget
from training.sync import WeightSync
from training.tracking import Tracker


@dataclass(frozen=True)
class Parts:
    """What a step needs: who plays, who learns, how weights travel."""

    pool: RolloutPool
    learner: LearnerGroup
    sync: WeightSync


def requests_at(settings: GRPOSection, tasks: Sequence[Task], step: int, seed: int, stage: str = "grpo") -> list[EpisodeRequest]:
    """The groups of a step: a seeded permutation of the tasks per epoch, so the position is the step and nothing else."""
    size = min(settings.tasks_per_step, len(tasks))
    per_epoch = len(tasks) // size
    order = np.random.default_rng([seed, 7, step // per_epoch]).permutation(len(tasks))
    chosen = [tasks[i] for i in order[(step % per_epoch) * size :][:size]]
    return [
        EpisodeRequest(
            task,
            seed=int(np.random.SeedSequence([seed, step, group, member]).generate_state(1)[0] % 2**31),
            stage=stage,
            step=step,
            group=group,
            temperature=settings.temperature,
        )
        for group, task in enumerate(chosen)
        for member in range(settings.samples_per_task)
    ]


def samples_of(
    trajectories: Sequence[Trajectory], settings: GRPOSection, algorithm: AlgorithmSection
) -> tuple[list[Sample], dict[str, float]]:
    """Trajectories → samples with advantages, and what was left out."""
    scored = [t for t in trajectories if t.transcript.stop_reason is not None and t.transcript.stop_reason.agent_at_fault]
    if not scored:
        return [], {"excluded": float(len(trajectories)), "flat_groups": 0.0}
    rewards = np.array([t.reward.total for t in scored])
    groups = np.array([t.group for t in scored])
    written = [t.sampled_tokens for t in scored]
    values = np.array(advantages(list(rewards), list(groups), algorithm.advantage, algorithm.normalize_by_std, written))
    values = np.where(values < 0, values * settings.negative_weight, values)
    kept = _spread(rewards, groups, settings.train_per_group)
    if settings.drop_flat_groups:  # nothing is learnt from a zero advantage
        kept &= np.abs(values) > 1e-6
    samples = [
        Sample(
            s.token_ids,
            s.loss_mask,
            advantages=[float(value)] * len(s.token_ids),
            sampler_logprobs=s.logprobs,
        )
        for t, value, keep in zip(scored, values, kept, strict=True)
        if keep
        for s in t.segments
    ]
    within = [float(np.std(rewards[groups == g])) for g in sorted(set(groups.tolist()))]
    return samples, {
        "excluded": float(len(trajectories) - len(scored)),
        "flat_groups": float(sum(spread < 1e-6 for spread in within)),
        "trained_episodes": float(kept.sum()),
        "reward/group_std": float(np.mean(within)),
        "advantage/abs_mean": float(np.abs(values).mean()),
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
) -> tuple[list[Trajectory], dict[str, float]]:
    """One GRPO step: rollout, advantage, update(s), sync. Returns the episodes and the step's metrics."""
    begin = time.monotonic()
    trajectories = parts.pool.play(requests, on_done)
    played = time.monotonic()
    samples, left_out = samples_of(trajectories, settings, algorithm)
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
    metrics |= left_out | episode_metrics(trajectories)
    metrics |= {
        "seconds/rollout": played - begin,
        "seconds/prepare": prepared - played,
        "seconds/update": updated - prepared,
        "seconds/sync": end - updated,
        "seconds/step": end - begin,
        "tokens_per_s": metrics.get("tokens", 0.0) / (end - begin),
        "gen_tokens_per_s": sum(t.sampled_tokens for t in trajectories) / (played - begin),
        "lr": lr,
    }
    return trajectories, metrics


def with_logprobs(
    samples: list[Sample], learner: LearnerGroup, settings: GRPOSection, algorithm: AlgorithmSection
) -> list[Sample]:
    """Adds the learner's own log-probs where several updates share a batch, and the reference's where KL is paid for."""
    if samples and settings.updates_per_step > 1:
        old = learner.logprobs(samples)
        samples = [replace(s, old_logprobs=o) for s, o in zip(samples, old, strict=True)]
    if samples and algorithm.kl_coef > 0:
        reference = learner.logprobs(samples, reference=True)
        samples = [replace(s, reference_logprobs=r) for s, r in zip(samples, reference, strict=True)]
    return samples


def episode_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Rewards, official reward beside them, stop reasons and lengths of a step's episodes."""
    rewards = np.array([t.reward.total for t in trajectories])
    metrics = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        "reward/best": float(rewards.max()),
        "batch_reward/official": float(np.mean([t.metrics.official_reward for t in trajectories])),
        "well_formed": float(np.mean([t.metrics.well_formed for t in trajectories])),
        "action_f1": float(np.mean([t.metrics.f1 for t in trajectories])),
        "action_exact": float(np.mean([t.metrics.exact for t in trajectories])),
        "episode/tokens": float(np.mean([t.tokens for t in trajectories])),
        "episode/sampled_tokens": float(np.mean([t.sampled_tokens for t in trajectories])),
        "episodes": float(len(trajectories)),
    }
    stops = Counter(t.transcript.stop_reason.value for t in trajectories if t.transcript.stop_reason)
    stop_rates = {f"stop/{reason}": count / len(trajectories) for reason, count in stops.items()}
    return {**metrics, **stop_rates, **user_usage(trajectories)}


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
        last_step_s = 0.0
        # A step that would end far outside the budget is not begun.
        while budget.progress(state.step, time.monotonic() - begin + 0.5 * last_step_s) < 1.0:
            requests = requests_at(settings, tasks, state.step, seed, stage)
            lr = settings.lr * min(1.0, (state.step + 1) / max(1, settings.warmup_steps))
            played = 0

            def on_done(_: Trajectory, total: int = len(requests)) -> None:
                nonlocal played
                played += 1
                progress_bar.update(
                    budget.progress(state.step, time.monotonic() - begin), f"step {state.step + 1}: {played}/{total} episodes"
                )

            trajectories, metrics = train_step(parts, requests, settings, algorithm, lr, on_done)
            store.write(stage, state.step, trajectories)
            folder.count("grpo_sampled", sum(t.sampled_tokens for t in trajectories))
            folder.count("grpo_trained", metrics.get("tokens", 0.0))
            tracker.log(stage, state.step, metrics)
            last_step_s = metrics["seconds/step"]
            state.step += 1
            state.stage_seconds = time.monotonic() - begin
            progress_bar.update(
                budget.progress(state.step, state.stage_seconds),
                f"step {state.step} reward {metrics['reward/mean']:+.3f} official {metrics['batch_reward/official']:.2f}",
            )
            if stop.raised or state.step % settings.checkpoint_steps == 0:
                folder.checkpoint(f"grpo-{state.step:05d}", parts.learner, {"stage": "grpo", "step": state.step})
            if stop.raised:
                raise Interrupted
    return state.step
