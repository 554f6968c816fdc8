"""From a step's episodes to samples with advantages: who is compared with whom, and what is left out.

An ending that is not the agent's fault says nothing about the policy and is left out of the advantage; a group whose members all
scored the same carries no signal. Both are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rollouts.trajectory import Trajectory
from training.config import AlgorithmSection, GRPOSection
from training.credit import token_advantages, turn_advantages
from training.learner.base import Sample
from training.loss import advantages


def is_scored(trajectory: Trajectory) -> bool:
    """Whether the ending says something about the policy; the others are left out of the advantage."""
    stop = trajectory.transcript.stop_reason
    return stop is not None and stop.agent_at_fault


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
