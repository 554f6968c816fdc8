"""Hands episodes to rollout workers, one at a time, and gets every one of them back.

    pool = RolloutPool.start(world, engine, workers=1)
    trajectories = pool.play(requests)              # in the order of the requests

A worker that dies costs its unfinished episodes' time: they are played again on the others, a bounded number of times.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from envs.errors import TaudojoError
from rollouts.engines.base import EngineConfig, EngineFailed
from rollouts.trajectory import EpisodeRequest, Trajectory
from rollouts.worker import RolloutWorker, WorldConfig

MAX_ATTEMPTS = 3
START_TIMEOUT_S = 600.0
SYNC_TIMEOUT_S = 300.0


class RolloutPool:
    """The living rollout workers of a run."""

    def __init__(self, workers: Sequence[Any], max_concurrent: int, lockstep: bool = False) -> None:
        self._workers = list(workers)
        self._max_concurrent = max_concurrent
        self._lockstep = lockstep

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
    ) -> RolloutPool:
        """Starts actors and waits until every engine is up.

        Raises:
            TaudojoError: an engine did not start; the message is the engine's own.
        """
        threads = {"OMP_NUM_THREADS": str(engine.cores or os.cpu_count() or 1)}
        remote: Any = ray.remote(RolloutWorker).options(
            num_cpus=0 if num_gpus else 1, num_gpus=num_gpus, max_concurrency=1000, runtime_env={"env_vars": threads}
        )
        actors = [remote.remote(world, engine) for _ in range(workers)]
        get([a.ready.remote() for a in actors], START_TIMEOUT_S, "the rollout engine to start")
        return cls(actors, max_concurrent, lockstep)

    def play(self, requests: Sequence[EpisodeRequest], on_done: Callable[[Trajectory], None] | None = None) -> list[Trajectory]:
        """Plays all requests and returns their trajectories in order."""
        if self._lockstep:
            done: list[Trajectory] = []
            for start in range(0, len(requests), self._max_concurrent):
                part = list(requests[start : start + self._max_concurrent])
                done += get(self._workers[0].play_lockstep.remote(part), None, "lock-step episodes")
                for trajectory in done[start:]:
                    if on_done:
                        on_done(trajectory)
            return done
        results: dict[int, Trajectory] = {}
        attempts = dict.fromkeys(range(len(requests)), 0)
        queue = deque(range(len(requests)))
        running: dict[Any, tuple[int, Any]] = {}
        load = dict.fromkeys(self._workers, 0)
        while queue or running:
            while queue and self._workers:
                worker = min(self._workers, key=lambda w: load[w])
                if load[worker] >= self._max_concurrent:
                    break
                number = queue.popleft()
                load[worker] += 1
                attempts[number] += 1
                running[worker.play.remote(requests[number])] = (number, worker)
            finished, _ = ray.wait(list(running), num_returns=1, timeout=60.0)
            for reference in finished:
                number, worker = running.pop(reference)
                load[worker] -= 1
                try:
                    results[number] = ray.get(reference)
                except RayTaskError as error:
                    if not isinstance(error.cause, EngineFailed):
                        raise error.cause from error
                    self._retry(worker, number, attempts, queue, error)
                except RayActorError as error:
                    self._retry(worker, number, attempts, queue, error)
                else:
                    if on_done:
                        on_done(results[number])
        return [results[n] for n in range(len(requests))]

    def _retry(self, worker: Any, number: int, attempts: dict[int, int], queue: deque[int], error: Exception) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
        if not self._workers or attempts[number] >= MAX_ATTEMPTS:
            raise TaudojoError(
                f"an episode could not be played ({attempts[number]} attempts, {len(self._workers)} workers left): "
                f"{str(error).strip().splitlines()[-1]}; resume the run to go on"
            ) from error
        queue.append(number)

    def load_weights(self, safetensors: Any, version: int) -> float:
        """Gives every worker the weights (an object reference to safetensors bytes). Returns seconds."""
        begin = time.monotonic()
        get([w.load_weights.remote(safetensors, version) for w in self._workers], SYNC_TIMEOUT_S, "weight sync")
        return time.monotonic() - begin

    def score(self, prompts: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        """Per worker and prompt: the log-probabilities of the prompt's tokens."""
        return get([w.score.remote(prompts) for w in self._workers], SYNC_TIMEOUT_S, "the probe's log-probs")

    def close(self) -> None:
        for worker in self._workers:
            try:
                ray.get(worker.close.remote(), timeout=30)
            except Exception:  # it is going away in any case
                pass
            ray.kill(worker)
        self._workers = []


def get(references: Any, timeout_s: float | None, what: str) -> Any:
    """`ray.get` whose errors say who was waited for; a worker's own exception comes through as itself."""
    try:
        return ray.get(references, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise TaudojoError(f"waited {timeout_s:.0f} s for {what}; see the Ray logs of the worker") from error
    except RayTaskError as error:
        raise error.cause from error
    except RayActorError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise TaudojoError(f"a worker died while the run waited for {what}: {lines[-1].strip()}") from error
