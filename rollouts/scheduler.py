"""Hands episodes to rollout workers, one at a time, and gets every one of them back.

    pool = RolloutPool.start(world, engine, workers=1)
    trajectories = pool.play(requests)              # in the order of the requests

Several threads may play at once, and the weights may be changed meanwhile (`rollout.mode`).
Who plays what is decided in `dispatch.py`. A worker that dies, whose engine fails, or that does not report any more costs its
unfinished episodes' time: they are played again on the others, a bounded number of times, while another worker is started in its
place and given the current weights. An episode that cannot be played ends as ENGINE_ERROR: none disappears.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from envs.errors import TaudojoError
from rollouts.dispatch import Dispatch
from rollouts.engines.base import EngineConfig, EngineFailed
from rollouts.lengths import Lengths
from rollouts.store import TrajectoryStore
from rollouts.trajectory import EpisodeRequest, Trajectory
from rollouts.watchdog import tell, tell_silent
from rollouts.worker import Order, Played, Report, RolloutWorker, WorldConfig

log = logging.getLogger(__name__)

#: How often an episode is begun before it is given up.
MAX_ATTEMPTS = 5
#: How often a lost worker is replaced, and the one in its place, and so on, without an episode played by any of them.
MAX_REBUILDS = 3
START_TIMEOUT_S = 600.0
SYNC_TIMEOUT_S = 300.0
#: A worker says at least this often that it lives; after `SILENCE_S` without a word it is taken for dead.
HEARTBEAT_S = 10.0
SILENCE_S = 120.0
#: An episode that waits so long for one answer is named in the log.
STANDSTILL_S = 60.0
#: Where several threads play, another waits for the reports so soon after the one that did has all of its own.
_TAKE_OVER_S = 0.05
#: Greatest mean |Δ log-prob| by which a rebuilt engine may differ from the others on the last probe; rounding explains less.
REBUILT_TOLERANCE = 0.05


class Cancelled(Exception):
    """Another thread has ended the play."""


class NoAnswer(TaudojoError):
    """A worker was waited for in vain."""


#: What a lost worker's call raises; `_reason` of it says why.
_LOST = (RayActorError, EngineFailed, NoAnswer)


class RolloutPool:
    """The living rollout workers of a run.

    rebuild: Starts a worker in a dead one's place; without it the pool only shrinks.
    weights_source: Publishes the weights that were loaded last, for a rebuilt worker; without it the pool keeps them. It may only
        be set where the learner does not go on while episodes are played.
    store: Takes every episode as it ends.
    """

    def __init__(
        self,
        workers: Sequence[Any],
        max_concurrent: int,
        lockstep: bool = False,
        rebuild: Callable[[int], Any] | None = None,
    ) -> None:
        self._workers = list(workers)
        self._numbers = {worker: number for number, worker in enumerate(workers)}
        self._max_concurrent = max_concurrent
        self._lockstep = lockstep
        self._rebuild = rebuild
        self._started = len(self._workers)
        self._losses: dict[Any, int] = {}  # worker → how many before it, one in the other's place, were lost without an episode
        self._starting: dict[Any, Any] = {}  # the reference that tells when it is ready → a rebuilt worker
        self._started_at: dict[Any, float] = {}  # the same reference → when
        self.weights_source: Callable[[], Any] | None = None
        self.store: TrajectoryStore | None = None
        self._lengths = Lengths()
        self._weights: Any = None
        self._version = 0
        self._probe: tuple[Sequence[Sequence[int]], list[list[float]]] | None = None
        self._round: _Round | None = None
        self._lock = threading.RLock()  # of everything here, and of the round; nobody who has it waits for episodes
        self._turn = threading.Lock()  # of the thread that waits for the workers' reports, for all that play

    @classmethod
    def start(
        cls,
        world: WorldConfig,
        engine: EngineConfig,
        *,
        workers: int = 1,
        max_concurrent: int = 64,
        num_gpus: float = 0.0,
        lockstep: bool = False,
        worker_class: type[RolloutWorker] = RolloutWorker,
    ) -> RolloutPool:
        """Starts actors and waits until every engine is up.

        Raises:
            TaudojoError: an engine did not start; the message is the engine's own.
        """
        threads = {"OMP_NUM_THREADS": str(engine.cores or len(os.sched_getaffinity(0)))}
        remote: Any = ray.remote(worker_class).options(
            num_cpus=0 if num_gpus else 1, num_gpus=num_gpus, max_concurrency=1000, runtime_env={"env_vars": threads}
        )

        def build(number: int) -> Any:
            return remote.remote(world, engine, number)

        actors = [build(number) for number in range(workers)]
        get([a.ready.remote() for a in actors], START_TIMEOUT_S, "the rollout engine to start")
        return cls(actors, max_concurrent, lockstep, build)

    @property
    def workers(self) -> int:
        """How many play, at least 1: where the last was lost, another is being started."""
        return max(1, len(self._workers))

    @property
    def places(self) -> int:
        """How many episodes all of them play at once."""
        return self.workers * self._max_concurrent

    def play(self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None = None) -> list[Trajectory]:
        """Plays all requests and returns their trajectories in order. What other threads asked for before is begun first.

        on_done: Hears of every episode as it ends, in any of the threads that play.

        Raises:
            Cancelled: `cancel` was called.
        """
        if self._lockstep:
            return self._play_lockstep(requests, on_done)
        try:
            with self._lock:
                if self._round is None:
                    self._round = _Round(self)
                its_round = self._round
                play = its_round.add([self._lengths.expect(request) for request in requests], on_done)
            while not play.over.is_set():
                if self._turn.acquire(blocking=False):
                    try:
                        if not play.over.is_set():
                            its_round.wait()
                    finally:
                        self._turn.release()
                else:
                    play.over.wait(_TAKE_OVER_S)
        except BaseException as error:  # Ctrl-C too: what runs is nobody's any more
            self._break_off(error)
            raise
        return play.result()

    def cancel(self) -> None:
        """Ends what other threads play: they raise Cancelled, and what was unfinished is forgotten."""
        self._break_off(Cancelled())

    def _break_off(self, error: BaseException) -> None:
        with self._lock:
            if self._round is not None:
                self._round.end(error)
                self._round = None

    def _play_lockstep(
        self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None
    ) -> list[Trajectory]:
        done: list[Trajectory] = []
        for start in range(0, len(requests), self._max_concurrent):
            part = list(requests[start : start + self._max_concurrent])
            done += get(self._workers[0].play_lockstep.remote(part), None, "lock-step episodes")
            for number in range(start, len(done)):
                self._keep(requests[number], done[number], number)
                if on_done:
                    on_done(done[number])
        return done

    def _keep(self, request: EpisodeRequest, trajectory: Trajectory, place: int) -> None:
        """An episode has ended: it is stored under its number in the step, and its length is learnt from."""
        self._lengths.learn(trajectory)
        if self.store is not None:
            self.store.append(trajectory, place if request.index is None else request.index)

    def load_weights(self, safetensors: Any, version: int) -> float:
        """Gives every worker the weights (an object reference to safetensors bytes). Returns seconds.

        Turns that are being written stand still meanwhile and go on with the new weights. A worker that dies of it is replaced,
        and so is one that had died before.
        """
        begin = time.monotonic()
        with self._lock:
            self._version, self._probe = version, None
            self._weights = safetensors if self.weights_source is None else None
            self._ask_all(lambda worker: worker.load_weights.remote(safetensors, version), "weight sync")
            while not self._workers:  # those that start load the same weights
                self._welcome(list(self._starting), safetensors)
        return time.monotonic() - begin

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        """Per worker and prompt: the log-probabilities of the prompt's tokens."""
        with self._lock:
            scores = self._ask_all(lambda worker: worker.score.remote(prompts), "the probe's log-probs")
            while not scores and self._starting:
                self._welcome(list(self._starting))
                scores = self._ask_all(lambda worker: worker.score.remote(prompts), "the probe's log-probs")
            self._probe = (prompts, scores[0]) if scores else None
        return scores

    def _ask_all(self, ask: Callable[[Any], Any], what: str) -> list[Any]:
        """What each worker answers; one that is dead, or does not answer, is replaced and says nothing."""
        answers = []
        for worker, reference in [(worker, ask(worker)) for worker in self._workers]:
            try:
                answers.append(get(reference, SYNC_TIMEOUT_S, what, dead=()))
            except _LOST as error:
                self._replace(worker, _reason(error))
        return answers

    def close(self) -> None:
        self.cancel()
        for worker in [*self._workers, *self._starting.values()]:
            try:
                ray.get(worker.close.remote(), timeout=30)
            except Exception:  # it is going away in any case
                pass
            ray.kill(worker)
        self._workers, self._starting, self._started_at = [], {}, {}

    def _replace(self, worker: Any, why: str) -> None:
        """A worker is given up, and another is started in its place.

        Raises:
            TaudojoError: none is left, and none can be started.
        """
        log.warning("rollout worker %d is lost: %s", self._numbers[worker], why)
        if worker in self._workers:
            self._workers.remove(worker)
        ray.kill(worker)
        losses = self._losses.pop(worker, 0) + 1
        if self._rebuild is not None and losses <= MAX_REBUILDS:
            new = self._rebuild(self._started)
            self._numbers[new], self._losses[new] = self._started, losses
            self._started += 1
            reference = new.ready.remote()
            self._starting[reference], self._started_at[reference] = new, time.monotonic()
        elif not self._workers and not self._starting:
            raise TaudojoError(f"the last rollout worker is lost: {why}; resume the run to go on")

    def _welcome_started(self) -> None:
        """Workers that are up by now join the others; those that should long have been are given up."""
        starting = list(self._starting)
        ready, others = ray.wait(starting, num_returns=len(starting), timeout=0) if starting else ([], [])
        self._welcome(ready)
        for reference in others:
            if time.monotonic() - self._started_at[reference] > START_TIMEOUT_S:
                del self._started_at[reference]
                self._replace(self._starting.pop(reference), f"it was not up {START_TIMEOUT_S:.0f} s after its start")

    def _welcome(self, references: Sequence[Any], safetensors: Any = None) -> None:
        """These workers, once they are up, are given the current weights and join the others."""
        for reference in references:
            worker = self._starting.pop(reference)
            del self._started_at[reference]
            try:
                get(reference, START_TIMEOUT_S, "the rollout engine to start", dead=())
                if self._version:
                    self._renew(worker, safetensors)
            except (*_LOST, TaudojoError) as error:
                self._replace(worker, _reason(error))
            else:
                self._workers.append(worker)

    def _renew(self, worker: Any, safetensors: Any = None) -> None:
        """Gives a rebuilt worker the current weights, and compares it with what the others said in the last probe."""
        if safetensors is None:
            safetensors = self.weights_source() if self.weights_source is not None else self._weights
        get(worker.load_weights.remote(safetensors, self._version), SYNC_TIMEOUT_S, "a rebuilt worker's weights", dead=())
        if self._probe is not None:
            prompts, expected = self._probe
            scores = get(worker.score.remote(prompts), SYNC_TIMEOUT_S, "a rebuilt worker's log-probs", dead=())
            gaps = [abs(a - b) for mine, theirs in zip(scores, expected, strict=True) for a, b in zip(mine, theirs, strict=True)]
            if not sum(gaps) / max(1, len(gaps)) <= REBUILT_TOLERANCE:
                raise TaudojoError(f"a rebuilt rollout worker does not have weight version {self._version}")


class _Play:
    """One call of `play`: its episodes as they come back."""

    def __init__(self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None) -> None:
        self.requests, self.on_done = requests, on_done
        self.over = threading.Event()
        self._played: dict[int, Trajectory] = {}
        self._error: BaseException | None = None
        if not requests:
            self.over.set()

    def take(self, place: int, trajectory: Trajectory) -> None:
        self._played[place] = trajectory
        if len(self._played) == len(self.requests):
            self.over.set()

    def end(self, error: BaseException) -> None:
        self._error = error
        self.over.set()

    def result(self) -> list[Trajectory]:
        if len(self._played) < len(self.requests):
            assert self._error is not None
            raise self._error
        return [self._played[place] for place in range(len(self.requests))]


class _Round:
    """What waits and what runs where, as long as anybody plays."""

    def __init__(self, pool: RolloutPool) -> None:
        self._pool = pool
        self._dispatch: Dispatch[Any] = Dispatch([], pool._max_concurrent)
        self._asked: dict[int, tuple[_Play, int]] = {}  # the number of an unfinished episode → whose it is, and its place there
        self._reports: dict[Any, Any] = {}  # the reference to a worker's next report → the worker
        self._heard: dict[Any, float] = {}
        self._base = time.monotonic_ns()  # a later round's episodes have higher numbers
        self._join_new()

    def add(self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None) -> _Play:
        play = _Play(requests, on_done)
        for place, number in enumerate(self._dispatch.add(requests)):
            self._asked[number] = play, place
        self._hand_out()
        return play

    def end(self, error: BaseException) -> None:
        """Nothing is waited for any more."""
        for worker in self._pool._workers:
            worker.drop.remote(time.monotonic_ns())
        for play, _ in self._asked.values():
            play.end(error)
        self._asked.clear()

    def wait(self) -> None:
        """Waits for the next report or rebuilt worker, takes what has come by then, and hands out."""
        pool = self._pool
        with pool._lock:
            references = [*self._reports, *pool._starting]
        ray.wait(references, num_returns=1, timeout=HEARTBEAT_S)
        with pool._lock:
            if pool._round is self:
                self._collect()
                self._hand_out()
                if not self._asked:
                    pool._round = None

    def _join_new(self) -> None:
        for worker in self._pool._workers:
            if worker not in self._heard:
                self._dispatch.join(worker)
                self._listen(worker)

    def _listen(self, worker: Any, received: Sequence[int] = ()) -> None:
        self._heard[worker] = time.monotonic()
        self._reports[worker.report.remote(HEARTBEAT_S, STANDSTILL_S, self._base, received)] = worker

    def _request(self, number: int) -> EpisodeRequest:
        play, place = self._asked[number]
        return play.requests[place]

    def _hand_out(self) -> None:
        orders: dict[Any, list[Order]] = {}
        while (handout := self._dispatch.next()) is not None:
            number, worker = handout
            request, attempt = self._request(number), self._dispatch.attempts[number]
            if attempt > MAX_ATTEMPTS + 1:
                raise TaudojoError(
                    f"task {request.task.id} ended {MAX_ATTEMPTS + 1} rollout workers; leave it out (env.exclude_audited, or "
                    "another task set) and resume the run"
                )
            if attempt > MAX_ATTEMPTS:
                request = replace(request, policy="none")
            request = replace(request, last_wave=self._dispatch.last_wave)
            orders.setdefault(worker, []).append(Order(self._base + number, request, attempt))
        for worker, batch in orders.items():
            worker.begin.remote(batch)

    def _collect(self) -> None:
        pool = self._pool
        pool._welcome_started()  # may take minutes: what others have reported meanwhile is looked at afterwards
        self._join_new()
        reports = list(self._reports)
        ready, _ = ray.wait(reports, num_returns=len(reports), timeout=0) if reports else ([], [])
        for reference in ready:
            if reference in self._reports:
                self._take(reference)
        for worker, heard in list(self._heard.items()):
            if time.monotonic() - heard > SILENCE_S:
                silent_s = time.monotonic() - heard
                tasks = [self._request(number).task.id for number in self._dispatch.running(worker)]
                tell_silent(pool._numbers[worker], silent_s, tasks)
                self._lose(worker, f"no report for {silent_s:.0f} s")

    def _take(self, reference: Any) -> None:
        worker = self._reports.pop(reference)
        try:
            report: Report = ray.get(reference)
        except RayActorError as error:
            self._lose(worker, _reason(error))
            return
        except RayTaskError as error:
            raise error.cause from error
        for played in sorted(report.played, key=lambda p: p.error is not None):  # what was played counts, whatever else happened
            if not self._accept(worker, played):
                return
        tell(self._pool._numbers[worker], report.standstills)
        self._listen(worker, [played.number for played in report.played])

    def _accept(self, worker: Any, played: Played) -> bool:
        """Takes in what a worker brought; False where the worker is lost with it."""
        number = played.number - self._base
        if not self._dispatch.plays(worker, number):
            return True  # of an earlier round, which was broken off
        if isinstance(played.error, EngineFailed):
            self._lose(worker, str(played.error))
            return False
        if played.error is not None:
            raise played.error
        self._dispatch.done(number)
        self._pool._losses[worker] = 0
        play, place = self._asked.pop(number)
        assert played.trajectory is not None
        self._pool._keep(play.requests[place], played.trajectory, place)
        play.take(place, played.trajectory)
        if play.on_done:
            play.on_done(played.trajectory)
        return True

    def _lose(self, worker: Any, why: str) -> None:
        self._heard.pop(worker, None)
        self._reports = {reference: w for reference, w in self._reports.items() if w is not worker}
        self._dispatch.leave(worker)
        if worker in self._pool._workers:  # else a weight sync has replaced it
            self._pool._replace(worker, why)


def get(references: Any, timeout_s: float | None, what: str, dead: tuple[type[Exception], ...] = (RayActorError,)) -> Any:
    """`ray.get` whose errors say who was waited for; a worker's own exception comes through as itself.

    dead: Errors of a dead worker that become sentences; others come through.
    """
    try:
        return ray.get(references, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise NoAnswer(f"waited {timeout_s:.0f} s for {what}; see the Ray logs of the worker") from error
    except RayTaskError as error:
        raise error.cause from error
    except dead as error:
        raise TaudojoError(f"a worker died while the run waited for {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
