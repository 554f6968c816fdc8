"""The batch of the learner benchmark: played episodes as rows of tokens, the same for every variant and for TRL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.errors import TaudojoError
from rollouts.store import read_file


@dataclass(frozen=True)
class Row:
    """One episode: its tokens, which of them the policy wrote, its group, and its reward less the group's mean."""

    token_ids: list[int]
    loss_mask: list[bool]
    group: int
    reward: float
    advantage: float


def read_batch(path: Path, max_tokens: int, count: int | None = None) -> list[Row]:
    """The episodes of a trajectory file, cut to `max_tokens`; the first `count` of them.

    Raises:
        TaudojoError: there is no such file, too few episodes, or one in which the policy wrote nothing.
    """
    try:
        played = list(read_file(path))
    except FileNotFoundError as error:
        raise TaudojoError(f"--trajectories {path}: no such file; give one of a run's trajectories/*.") from error
    except ValueError as error:
        raise TaudojoError(str(error)) from error
    if len(played) < (count or 1):
        raise TaudojoError(f"{path} has {len(played)} episodes and {count or 1} are wanted.")
    rewards: dict[tuple[int, int], list[float]] = defaultdict(list)
    for trajectory in played:
        rewards[trajectory.step, trajectory.group].append(trajectory.reward.total)
    numbers = {key: number for number, key in enumerate(rewards)}
    rows = []
    for trajectory in played[:count]:
        key = (trajectory.step, trajectory.group)
        advantage = trajectory.reward.total - sum(rewards[key]) / len(rewards[key])
        for segment in trajectory.segments:
            tokens = segment.token_ids[:max_tokens].tolist()
            mask = [bool(own) for own in segment.loss_mask[:max_tokens]]
            if not any(mask[1:]):
                raise TaudojoError(
                    f"{path}: the policy wrote nothing in the first {max_tokens} tokens of an episode of task "
                    f"{trajectory.transcript.task_id}; there is nothing to train on."
                )
            rows.append(Row(tokens, mask, numbers[key], trajectory.reward.total, advantage))
    return rows


def whole_groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by group.

    Raises:
        TaudojoError: the groups are not equally large.
    """
    groups: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    sizes = {len(group) for group in groups.values()}
    if len(sizes) != 1 or sizes == {1}:
        raise TaudojoError(f"TRL needs groups of one size, two or more; these have {sorted(sizes)}. Leave it out with --no-trl.")
    return list(groups.values())
