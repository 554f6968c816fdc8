"""Advantages of turns instead of whole episodes (`algorithm.credit=turn`).

Turn k of episode i earned r[i,k] (`rewards/credit.py`). Its tokens are credited with what was earned from there on, compared with
the k-th turns of the same group:

    R[i,k] = r[i,k] + r[i,k+1] + … + r[i,last]
    A[i,k] = R[i,k] − mean of R[j,k] over the group's episodes j that have a k-th turn
    A[i,k] / (σ + 1e-6)    with normalize_by_std, where σ² = (sum of A² over the group's N turns) / (N − 1)

R[i,1] is the episode's reward, so that with one turn for each episode this is GRPO. A turn that nobody in the group compares with
has no advantage. Comparing by position keeps late turns, for which less is still to come, from looking bad beside early ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollouts.trajectory import Trajectory


def turn_advantages(
    rewards_BT: Sequence[Sequence[float]], groups_B: Sequence[int], normalize_by_std: bool = True
) -> list[list[float]]:
    """An advantage for each turn of each episode, from the turns' rewards and the episodes' groups."""
    to_go = [np.cumsum(np.asarray(rewards, float)[::-1])[::-1] for rewards in rewards_BT]
    result: list[list[float]] = [[] for _ in to_go]
    for group in set(groups_B):
        members = [i for i, g in enumerate(groups_B) if g == group]
        longest = max(len(to_go[i]) for i in members)
        baseline = [np.mean([to_go[i][k] for i in members if len(to_go[i]) > k]) for k in range(longest)]
        centred = {i: to_go[i] - np.array(baseline[: len(to_go[i])]) for i in members}
        every = np.concatenate(list(centred.values()))
        scale = 1.0
        if normalize_by_std and len(every) > 1:
            scale = 1.0 / (float(np.sqrt((every**2).sum() / (len(every) - 1))) + 1e-6)
        for i in members:
            result[i] = [float(a) for a in centred[i] * scale]
    return result


def token_advantages(trajectory: Trajectory, advantages_T: Sequence[float]) -> list[list[float]]:
    """For each segment one number per token: the turn's advantage on the tokens that were sampled in it, 0 elsewhere.

    Raises:
        ValueError: the trajectory has another number of sampled turns.
    """
    sampled = sum(len(s.turns) for s in trajectory.segments)
    if sampled != len(advantages_T):
        raise ValueError(
            f"task {trajectory.transcript.task_id}: {len(advantages_T)} turns were credited and {sampled} were sampled"
        )
    values = iter(advantages_T)
    rows = []
    for segment in trajectory.segments:
        row = [0.0] * len(segment.token_ids)
        for start, stop in segment.turns:
            row[start:stop] = [next(values)] * (stop - start)
        rows.append(row)
    return rows
