"""When a step's episodes are played, and with which weights: `rollout.mode`.

    sync           play 0 | update 0 | play 1 | update 1 | …           every episode is on-policy
    one_step_off   play 0 | play 1 ‖ update 0 | play 2 ‖ update 1 | …  nothing is in flight when the weights change
    async          up to `max_staleness` further steps are in flight all the time, also when the weights change

Staleness is bounded by admission. Which groups a step trains on is fixed before they are played, so step n is begun as soon as
n − staleness steps have been trained: never more than (trained steps + staleness + 1) × groups are admitted, AReaL's bound (arXiv
2505.24298). There whoever ends first is trained on first, and a long episode may grow older than the bound; here none can, and
nothing is ever discarded. The price is that a step waits for its own last episode.

A run that is resumed begins with nothing in flight, at the first step that is not in its checkpoint. What was played ahead of the
end is forgotten and played again, with the weights of then: each step is trained on once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

from training.config import RolloutSection

Played = TypeVar("Played")

#: How often a play that has not heard of the end yet is told again.
_AGAIN_S = 0.1


class Ahead(Generic[Played]):
    """Plays steps before they are asked for, as far as the mode allows; a context, at whose end nothing is in flight any more.

        with Ahead(play, rollout, first=0, end=100, cancel=pool.cancel) as ahead:
            batch = ahead.take(step)
            …                             # update
            ahead.settle()
            …                             # weight sync
            ahead.trained()

    play: Plays all episodes of a step, in a thread of its own, in mode `sync` in the caller's.
    first: The first step. end: The step that will not be trained any more; None where nobody knows.
    cancel: Ends every play under way with an exception.
    forget: Hears of each step that was begun and never taken.
    """

    def __init__(
        self,
        play: Callable[[int], Played],
        rollout: RolloutSection,
        *,
        first: int = 0,
        end: int | None = None,
        cancel: Callable[[], None] = lambda: None,
        forget: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._play, self._cancel, self._forget = play, cancel, forget
        self._ahead = rollout.steps_ahead
        self._settles = rollout.mode == "one_step_off"
        self._trained = self._next = first
        self._end = end
        self._plays: dict[int, Future[Played]] = {}  # begun and not taken
        self._threads = ThreadPoolExecutor(self._ahead + 1, "rollouts") if self._ahead else None
        self._lock = threading.Lock()
        self._playing = 0
        self._idle_since, self._idle_s = time.monotonic(), 0.0

    def __enter__(self) -> Ahead[Played]:
        return self

    def take(self, step: int) -> Played:
        """The step's episodes, when all have ended. Raises what `play` raised."""
        if self._threads is None:
            return self._timed(step)
        self._admit()
        batch = self._plays[step].result()
        del self._plays[step]
        self._admit()
        return batch

    def settle(self) -> None:
        """Waits until the weights may change."""
        if self._settles:
            wait(self._plays.values())

    def trained(self) -> None:
        """A step has been trained on, and the engines have what came of it."""
        self._trained += 1
        self._admit()

    def idle_s(self) -> float:
        """Seconds in which the engines had nothing to play, since the last time that this was asked."""
        with self._lock:
            if not self._playing:
                self._note_idle()
            idle, self._idle_s = self._idle_s, 0.0
        return idle

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        while running := [play for play in self._plays.values() if not play.done()]:
            self._cancel()
            wait(running, timeout=_AGAIN_S)
        for step in self._plays:
            self._forget(step)

    def _admit(self) -> None:
        """Begins every step that will not be older than the mode allows when it is trained on."""
        while self._threads is not None and self._next <= self._trained + self._ahead and self._next != self._end:
            if self._settles and not all(play.done() for play in self._plays.values()):
                return  # the weights change between two steps, so these are not in flight together
            self._plays[self._next] = self._threads.submit(self._timed, self._next)
            self._next += 1

    def _timed(self, step: int) -> Played:
        with self._lock:
            if not self._playing:
                self._note_idle()
            self._playing += 1
        try:
            return self._play(step)
        finally:
            with self._lock:
                self._playing -= 1
                self._idle_since = time.monotonic()

    def _note_idle(self) -> None:
        now = time.monotonic()
        self._idle_s += now - self._idle_since
        self._idle_since = now
