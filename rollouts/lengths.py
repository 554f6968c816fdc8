"""How long episodes will be, learnt from those that were: the longest are handed out first.

    lengths.learn(trajectory)
    requests = [lengths.expect(request) for request in requests]

What a task's episodes wrote before, else what those of its kind did; a moving mean, since the policy changes.
"""

from __future__ import annotations

from dataclasses import replace

from rollouts.trajectory import EpisodeRequest, Trajectory

#: Weight of the newest episode.
_NEWEST = 0.2


class Lengths:
    """Means of sampled tokens, by task and by kind of task."""

    def __init__(self) -> None:
        self._means: dict[tuple[str, str], float] = {}

    def learn(self, trajectory: Trajectory) -> None:
        """Takes in an episode that ended by itself; others say nothing about the next one."""
        stop = trajectory.transcript.stop_reason
        if stop is None or not stop.agent_at_fault:
            return
        sampled = float(trajectory.sampled_tokens)
        for key in (("task", trajectory.transcript.task_id), ("kind", trajectory.kind)):
            before = self._means.get(key, sampled)
            self._means[key] = before + _NEWEST * (sampled - before)

    def expect(self, request: EpisodeRequest) -> EpisodeRequest:
        """The request with `expected_tokens`, where something is known and nobody has said it."""
        if request.expected_tokens is not None:
            return request
        known = self._means.get(("task", request.task.id), self._means.get(("kind", request.task.kind)))
        return request if known is None else replace(request, expected_tokens=known)
