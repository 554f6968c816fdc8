"""The numbers of a GRPO step that are made from its episodes; and the list of all names, with what each means.

    metrics = episode_metrics(trajectories) | engine_metrics(trajectories, seconds=12.5, places=64)

The list is what `docs/observability.md` explains and what the dashboard draws.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from envs.types import StopReason
from rollouts.trajectory import Trajectory, user_usage
from training.advantages import is_scored
from training.calibration import rank_correlation

#: Every number that a GRPO step logs, whatever its settings. A step in which nothing was trained has none of the learner's.
EPISODES = {
    "reward/mean": "the reward that trains, over the step's episodes",
    "reward/std": "its standard deviation",
    "reward/best": "the greatest",
    "reward/group_std": "standard deviation within a task's group, mean over groups",
    "reward/group_variance": "variance within a task's group, mean over groups",
    "batch_reward/raw": "mean of τ²'s own score, nothing shaped (`batch_reward/official` is the same number)",
    "batch_reward/official": "mean of τ²'s own score",
    "batch_reward/shaped": "mean of the reward that trains",
    "batch_reward/parse_failure_rate": "share of the policy's turns that did not parse",
    "success/rate": "share of episodes that τ² scores 1",
    "success/pass_at_k": "share of groups in which some episode did (pass@k, k the group's size)",
    "success/pass_hat_k": "share of groups in which every episode did (pass^k)",
    "well_formed": "share of well-formed calls",
    "action_f1": "calls against the gold calls",
    "action_exact": "share of episodes with the gold calls in order and no other writes",
    "episodes": "played",
    "excluded": "ended by no fault of the agent, and left out of the advantage",
    "trained_episodes": "trained on",
    "flat_groups": "groups without any spread, which teach nothing",
    "advantage/abs_mean": "mean size of an advantage",
    "episode/turns": "turns of the policy, mean",
    "episode/turns_max": "turns of the policy, most",
    "episode/calls": "tool calls of the policy, mean",
    "episode/tokens": "length in tokens, mean",
    "episode/tokens_max": "length in tokens, greatest",
    "episode/sampled_tokens": "tokens that the policy wrote, mean",
    "episode/sampled_tokens_max": "tokens that the policy wrote, most",
    "episode/seconds": "duration, mean",
    "episode/seconds_max": "duration, longest",
    "episode/retried": "episodes that were begun more than once, because a worker was lost",
    "staleness/mean": "weight versions between sampling and training, mean over sampled tokens; 0 on-policy",
    "staleness/max": "the same, greatest",
    **{f"stop/{reason}": f"share of episodes that ended with `{reason}`" for reason in StopReason},
}
ENGINE = {
    "gen_tokens_per_s": "sampled tokens by the time of playing",
    "engine/in_flight": "requests that the engines had at once, mean",
    "engine/utilisation": "the same as a share of their places, `rollout.max_concurrent` each",
    "engine/kv_cache_hit_rate": "share of prompt tokens whose keys and values were found in the prefix cache",
}
TIME = {
    "seconds/rollout": "playing, without scoring",
    "seconds/reward": "scoring",
    "seconds/prepare": "advantages, and log-probs where they are asked for",
    "seconds/update": "training",
    "seconds/sync": "new weights to the engines, and the proof",
    "seconds/idle": "between the step before and this one: episodes stored, numbers logged, checkpoints written",
    "seconds/engines_idle": "without an episode under way; overlaps with the others",
    "seconds/step": "from the first episode to the end of the sync",
    "tokens_per_s": "trained tokens by the step's time",
}
LEARNER = {
    "loss": "the policy loss",
    "entropy": "of the policy at its sampled tokens, in nats",
    "ratio": "importance ratio of the learner now to the learner before the step, mean over tokens",
    "max/sampler_ratio": "importance ratio of the learner to the engine that sampled, greatest; what truncation cuts",
    "kl_sampler": "KL of the sampler to the learner, in nats per token",
    "sampler_gap": "mean |Δ log-prob| of learner and sampler",
    "tis_truncated": "share of tokens whose ratio was cut at `algorithm.tis_cap`",
    "sampler_masked": "share of tokens left out by `algorithm.mask_below`, `mask_above`",
    "pg_clipfrac": "share of tokens that the loss clipped (losses that clip)",
    "grad_norm": "before clipping",
    "lr": "learning rate",
    "tokens": "trained tokens",
    "unique_tokens": "those that the prefix tree computed",
    "loss_tokens": "trained tokens that the policy wrote",
    "sync/transfer_s": "seconds of the new weights on their way",
    "sync/probe_s": "seconds of the proof",
    "sync/mean_gap": "mean |Δ log-prob| of engine and learner on the probe, after the sync",
    "sync/max_gap": "the greatest",
}
STEP_METRICS = EPISODES | ENGINE | TIME | LEARNER


def episode_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Rewards and their parts, success, stop reasons, turns and lengths of a step's episodes."""
    rewards = np.array([t.reward.total for t in trajectories])
    official = float(np.mean([t.metrics.official_reward for t in trajectories]))
    turns = np.array([policy_turns(t) for t in trajectories])
    failures = sum(t.transcript.parse_failures for t in trajectories)
    tokens = [t.tokens for t in trajectories]
    sampled = [t.sampled_tokens for t in trajectories]
    metrics = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        "reward/best": float(rewards.max()),
        **component_means(trajectories),
        "batch_reward/raw": official,
        "batch_reward/official": official,
        "batch_reward/shaped": float(rewards.mean()),
        "batch_reward/parse_failure_rate": failures / max(1, int(turns.sum())),
        "well_formed": float(np.mean([t.metrics.well_formed for t in trajectories])),
        "action_f1": float(np.mean([t.metrics.f1 for t in trajectories])),
        "action_exact": float(np.mean([t.metrics.exact for t in trajectories])),
        "episode/turns": float(turns.mean()),
        "episode/turns_max": float(turns.max()),
        "episode/calls": float(np.mean([t.metrics.calls for t in trajectories])),
        "episode/tokens": float(np.mean(tokens)),
        "episode/tokens_max": float(max(tokens)),
        "episode/sampled_tokens": float(np.mean(sampled)),
        "episode/sampled_tokens_max": float(max(sampled)),
        "episode/seconds": float(np.mean([t.seconds for t in trajectories])),
        "episode/seconds_max": float(max(t.seconds for t in trajectories)),
        "episode/retried": float(sum(t.attempts > 1 for t in trajectories)),
        "episodes": float(len(trajectories)),
    }
    scored = [t for t in trajectories if is_scored(t)]
    ranked = rank_correlation([t.reward.total for t in scored], [t.metrics.official_reward for t in scored])
    if ranked is not None:
        metrics["reward/rank_correlation"] = ranked
    stops = Counter(t.transcript.stop_reason for t in trajectories)
    stop_rates = {f"stop/{reason}": stops[reason] / len(trajectories) for reason in StopReason}
    return {**metrics, **success_metrics(scored), **stop_rates, **user_usage(trajectories)}


def policy_turns(trajectory: Trajectory) -> int:
    """How often the policy spoke."""
    return sum(len(s.turns) for s in trajectory.segments)


def component_means(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The mean of every component of the reward, as `batch_reward/<component>`."""
    values: dict[str, list[float]] = defaultdict(list)
    for trajectory in trajectories:
        for component in trajectory.reward.components:
            values[f"batch_reward/{component.name}"].append(component.value)
    return {name: float(np.mean(of_episodes)) for name, of_episodes in values.items()}


def success_metrics(scored: Sequence[Trajectory]) -> dict[str, float]:
    """Shares of episodes and of groups that τ² scores 1; of episodes that say something about the policy, 0 without any."""
    groups: dict[int, list[bool]] = defaultdict(list)
    for trajectory in scored:
        groups[trajectory.group].append(trajectory.metrics.official_reward >= 1.0)
    solved = [won for of_group in groups.values() for won in of_group]
    return {
        "success/rate": float(np.mean(solved)) if solved else 0.0,
        "success/pass_at_k": float(np.mean([any(g) for g in groups.values()])) if groups else 0.0,
        "success/pass_hat_k": float(np.mean([all(g) for g in groups.values()])) if groups else 0.0,
    }


def engine_metrics(trajectories: Sequence[Trajectory], seconds: float, places: int) -> dict[str, float]:
    """How busy the engines were.

    Args:
        seconds: how long these episodes were played
        places: how many requests all engines together may work on at once
    """
    in_flight = sum(t.timings.get("generate", 0.0) for t in trajectories) / seconds
    prompts = sum(start for t in trajectories for s in t.segments for start, _ in s.turns)  # a turn's prompt is all before it
    return {
        "gen_tokens_per_s": sum(t.sampled_tokens for t in trajectories) / seconds,
        "engine/in_flight": in_flight,
        "engine/utilisation": in_flight / places,
        "engine/kv_cache_hit_rate": sum(t.cached_tokens for t in trajectories) / max(1, prompts),
    }
