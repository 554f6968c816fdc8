"""Which episode is handed out next, and to which worker. No Ray, no clock: a function of what was added and what came back.

    dispatch = Dispatch(requests, max_concurrent=64)    # more of them later: dispatch.add(others)
    dispatch.join("w0")
    while (handout := dispatch.next()) is not None:
        number, worker = handout
    dispatch.done(number)                     # or, where a worker died: dispatch.leave("w0")

First come, first served; among what came together longest first: groups with the greatest `expected_tokens` lead, so that none
of them is left over at the end; without expectations the order is that of the requests. Groups stay together: the episodes of a
task share their prompt, so a worker goes on with a task that it has begun, whose prefix its engine has cached. Only a worker that
would otherwise idle takes from another's task. The worker with the least outstanding work is served first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from rollouts.trajectory import EpisodeRequest

Worker = TypeVar("Worker", bound=Hashable)

#: What an episode of unknown length counts in a worker's load, where others have expectations.
_UNKNOWN_TOKENS = 250.0


class Dispatch(Generic[Worker]):
    """The waiting and running episodes, numbered in the order in which they were added.

    max_concurrent: Episodes that a worker may have at once; the rest waits here, not there.
    attempts: How often each has been handed out.
    """

    def __init__(self, requests: Sequence[EpisodeRequest], max_concurrent: int) -> None:
        self.attempts: dict[int, int] = {}
        self._max_concurrent = max_concurrent
        self._added = 0
        self._weights: dict[int, float] = {}
        self._fresh: deque[deque[int]] = deque()
        self._retries: deque[int] = deque()
        self._begun: dict[Worker, deque[deque[int]]] = {}
        self._running: dict[Worker, set[int]] = {}
        self._load: dict[Worker, float] = {}
        self._where: dict[int, Worker] = {}
        self._waiting = 0
        self.add(requests)

    def add(self, requests: Sequence[EpisodeRequest]) -> range:
        """Further episodes, after all that wait already; returns their numbers."""
        numbers = range(self._added, self._added + len(requests))
        groups: dict[Hashable, deque[int]] = {}
        for number, request in zip(numbers, requests, strict=True):
            self.attempts[number] = 0
            self._weights[number] = _UNKNOWN_TOKENS if request.expected_tokens is None else request.expected_tokens
            groups.setdefault((request.task.id, request.group), deque()).append(number)

        def longest(members: deque[int]) -> float:
            return max(requests[n - numbers.start].expected_tokens or 0.0 for n in members)

        self._fresh.extend(sorted(groups.values(), key=longest, reverse=True))
        self._added += len(requests)
        self._waiting += len(requests)
        return numbers

    @property
    def unfinished(self) -> int:
        return self._waiting + len(self._where)

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def last_wave(self) -> bool:
        """Whether all that wait find places once those that run have ended."""
        return self._waiting < self._max_concurrent * len(self._running)

    def running(self, worker: Worker) -> list[int]:
        """The episodes that this worker has."""
        return sorted(self._running.get(worker, ()))

    def plays(self, worker: Worker, number: int) -> bool:
        """Whether this worker has this episode."""
        return number in self._where and self._where[number] == worker

    def join(self, worker: Worker) -> None:
        """A worker is ready for episodes."""
        self._begun[worker], self._running[worker], self._load[worker] = deque(), set(), 0.0

    def leave(self, worker: Worker) -> list[int]:
        """A worker is gone. Its episodes, returned, wait again, before all others."""
        lost = sorted(self._running.pop(worker, set()))
        self._load.pop(worker, None)
        for number in lost:
            del self._where[number]
        self._retries.extend(lost)
        self._waiting += len(lost)
        self._fresh.extendleft(group for group in reversed(self._begun.pop(worker, deque())) if group)
        return lost

    def next(self) -> tuple[int, Worker] | None:
        """The next handout; None while no episode waits or every worker has its fill."""
        if not self._waiting:
            return None
        free = [worker for worker, running in self._running.items() if len(running) < self._max_concurrent]
        if not free:
            return None
        worker = min(free, key=lambda w: (self._load[w], len(self._running[w])))
        number = self._pick(worker)
        self._waiting -= 1
        self.attempts[number] += 1
        self._where[number] = worker
        self._running[worker].add(number)
        self._load[worker] += self._weights[number]
        return number, worker

    def done(self, number: int) -> None:
        """An episode came back."""
        worker = self._where.pop(number)
        self._running[worker].remove(number)
        self._load[worker] = self._load[worker] - self._weights[number] if self._running[worker] else 0.0
        del self._weights[number], self.attempts[number]

    def _pick(self, worker: Worker) -> int:
        if self._retries:
            return self._retries.popleft()
        own = self._begun[worker]
        while own and not own[0]:
            own.popleft()
        if own:
            return own[0].popleft()
        if self._fresh:
            own.append(self._fresh.popleft())
            return own[0].popleft()
        left = [group for begun in self._begun.values() for group in begun if group]
        return max(left, key=len).pop()
