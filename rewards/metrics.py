"""How good a set of episodes was: rates from 0 to 1, with 95% intervals by bootstrap over tasks.

One `EpisodeMetrics` per episode, one `block` per task set. Intervals say how much the numbers would move with other tasks of the
same kind; several episodes of one task are resampled together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from envs.errors import TaudojoError
from envs.types import Task, Transcript
from rewards.breakdown import RewardBreakdown
from rewards.matching import executed_calls, gold_actions, match
from rewards.schema import agent_tools, agent_writes, is_well_formed
from rewards.tau2 import do_nothing_matches, official_reward

if TYPE_CHECKING:
    from envs.env import Env

RESAMPLES = 2000


@dataclass(frozen=True)
class EpisodeMetrics:
    """One episode against its task's gold actions.

    calls: attempts, those that did not parse included; well_formed_calls: those that parsed, name a known tool and have valid
    arguments. precision, recall, f1: executed calls against gold actions, equal as in `rewards/matching.py`, each used once.
    exact: the same write calls as the gold actions, and all gold actions among the calls in their order. is_write_task: the gold
    actions write. db_match: the official database check; noop_db_match: the same check for an agent that does nothing.
    """

    task_id: str
    kind: str
    calls: int
    well_formed_calls: int
    precision: float
    recall: float
    f1: float
    exact: bool
    is_write_task: bool
    db_match: bool
    noop_db_match: bool
    official_reward: float
    reward: float
    stop_reason: str | None

    @property
    def well_formed(self) -> float:
        """Share of the attempts; an episode without any counts 0, or silence would be perfect form."""
        return self.well_formed_calls / self.calls if self.calls else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> EpisodeMetrics:
        return cls(**raw)


def episode_metrics(task: Task, transcript: Transcript, env: Env, reward: RewardBreakdown) -> EpisodeMetrics:
    """Measure a finished episode; `reward` is what it was trained or selected on."""
    gold = gold_actions(task, solo=env.solo)
    calls = [c for c in executed_calls(task, transcript) if c.action.requestor == "assistant"]
    agent_gold = [g for g in gold if g.action.requestor == "assistant"]
    pairs = match(agent_gold, calls, task.domain)
    hits, writes, tools = len(pairs.exact), agent_writes(env), agent_tools(env)
    # Nothing predicted is perfectly precise only if nothing was wanted.
    precision = hits / len(calls) if calls else float(not agent_gold)
    recall = hits / len(agent_gold) if agent_gold else 1.0
    gold_writes = sum(g.action.name in writes for g in agent_gold)
    right_writes = sum(agent_gold[g].action.name in writes for g, _ in pairs.exact)
    official = official_reward(task, transcript, env)
    return EpisodeMetrics(
        task_id=task.id,
        kind=task.kind,
        calls=len(calls) + transcript.parse_failures,
        well_formed_calls=sum(is_well_formed(c.action, tools) for c in calls),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        exact=pairs.in_order and right_writes == gold_writes == sum(c.action.name in writes for c in calls),
        is_write_task=gold_writes > 0,
        db_match=bool(official.value("db")),
        noop_db_match=do_nothing_matches(task, env.domain),
        official_reward=official.total,
        reward=reward.total,
        stop_reason=transcript.stop_reason.value if transcript.stop_reason else None,
    )


#: The metrics of a block; None leaves an episode out of that metric.
METRICS: dict[str, Callable[[EpisodeMetrics], float | None]] = {
    "well_formed": lambda e: e.well_formed,
    "action_f1": lambda e: e.f1,
    "action_exact": lambda e: float(e.exact),
    "write_db_match": lambda e: float(e.db_match) if e.is_write_task else None,
    "noop_write_db_match": lambda e: float(e.noop_db_match) if e.is_write_task else None,
    "official_reward": lambda e: e.official_reward,
    "reward": lambda e: e.reward,
}


def block(episodes: Sequence[EpisodeMetrics], seed: int = 0) -> dict[str, Any]:
    """`n`, the mean of every metric over episodes, and `ci95` (metric -> [low, high]).

    A metric that no episode takes part in (database match without any write task) is None and has no interval.
    """
    result: dict[str, Any] = {"n": len(episodes)}
    intervals: dict[str, list[float]] = {}
    for name, of in METRICS.items():
        by_task = _values_by_task(episodes, of)
        values = [v for task in by_task.values() for v in task]
        result[name] = float(np.mean(values)) if values else None
        if values:
            sums = np.array([sum(task) for task in by_task.values()])
            counts = np.array([len(task) for task in by_task.values()])
            intervals[name] = _bootstrap(sums, counts, seed)
    return {**result, "ci95": intervals}


def paired_difference(a: Sequence[EpisodeMetrics], b: Sequence[EpisodeMetrics], metric: str, seed: int = 0) -> dict[str, Any]:
    """Mean over tasks of `a` minus `b` on the same tasks: `{"mean", "ci95", "n"}`, the interval by bootstrap over tasks."""
    if metric not in METRICS:
        raise TaudojoError(f"Metric {metric!r} is not known; choose among {', '.join(METRICS)}.")
    in_a, in_b = _values_by_task(a, METRICS[metric]), _values_by_task(b, METRICS[metric])
    if unpaired := sorted(in_a.keys() ^ in_b.keys()):
        raise TaudojoError(
            f"Cannot pair {metric}: {len(unpaired)} tasks (task {unpaired[0]} first) are in one set only; evaluate both alike."
        )
    if not in_a:
        return {"mean": None, "ci95": None, "n": 0}
    differences = np.array([np.mean(in_a[task]) - np.mean(in_b[task]) for task in in_a])
    return {
        "mean": float(differences.mean()),
        "ci95": _bootstrap(differences, np.ones(len(differences)), seed),
        "n": len(differences),
    }


def _values_by_task(episodes: Sequence[EpisodeMetrics], of: Callable[[EpisodeMetrics], float | None]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for episode in episodes:
        if (value := of(episode)) is not None:
            values.setdefault(episode.task_id, []).append(value)
    return values


def _bootstrap(sums: np.ndarray, counts: np.ndarray, seed: int) -> list[float]:
    """95% percentile interval of sums / counts; `sums` and `counts` have one entry per task."""
    draws = np.random.default_rng(seed).integers(0, len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return [float(low), float(high)]
