"""Rejection-sampling fine-tuning: play, keep what scores well, train on it as SFT does.

A round: sample episodes of new tasks from the policy, keep those that τ² scores and that have at least the threshold's reward, no
two of a task with the same calls (Yuan et al. 2023, arXiv 2308.01825: it is different ways to a solution that help), and take SFT
steps on them. The next round samples from the policy that came of it.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence

from envs.types import Task
from rollouts.store import TrajectoryStore
from rollouts.trajectory import EpisodeRequest, Trajectory
from training.config import RFTSection
from training.metrics import engine_metrics, episode_metrics
from training.progress import bar
from training.run import Interrupted, RunFolder, StopSignal
from training.sampling import requests_at
from training.stages.grpo import Parts
from training.stages.sft import Budget, batch_at, samples_of
from training.tracking import Tracker


def requests_of(settings: RFTSection, tasks: Sequence[Task], number: int, seed: int, stage: str = "rft") -> list[EpisodeRequest]:
    """The episodes of a round."""
    return requests_at(
        tasks,
        number,
        seed,
        groups=settings.tasks_per_round,
        samples=settings.samples_per_task,
        temperature=settings.temperature,
        stage=stage,
    )


def keep(trajectories: Sequence[Trajectory], settings: RFTSection) -> tuple[list[Trajectory], dict[str, float]]:
    """The episodes to train on, best first, and the round's counts: `accepted` reached the threshold, `kept` are trained on."""
    accepted = [
        t
        for t in trajectories
        if t.transcript.stop_reason is not None and t.transcript.stop_reason.official and t.reward.total >= settings.threshold
    ]
    kept: list[Trajectory] = []
    seen: set[tuple[str, str]] = set()
    of_task: Counter[str] = Counter()
    for trajectory in sorted(accepted, key=lambda t: -t.reward.total):
        task = trajectory.transcript.task_id
        calls = (task, json.dumps([c.to_json() for c in trajectory.transcript.calls], sort_keys=True))
        if calls not in seen and of_task[task] < settings.keep_per_task:
            seen.add(calls)
            of_task[task] += 1
            kept.append(trajectory)
    return kept, {
        "accepted": float(len(accepted)),
        "acceptance": len(accepted) / len(trajectories),
        "kept": float(len(kept)),
        "kept_tasks": float(len(of_task)),
    }


def steps_of(samples: int, settings: RFTSection) -> int:
    """Optimizer steps of a round that kept so many samples."""
    return settings.epochs * math.ceil(samples / settings.batch_size)


def run_rft(
    settings: RFTSection,
    seed: int,
    tasks: Sequence[Task],
    parts: Parts,
    store: TrajectoryStore,
    folder: RunFolder,
    tracker: Tracker,
    stop: StopSignal,
    stage: str = "rft",
) -> int:
    """All rounds, or until the budget is spent; returns the number of optimizer steps. What was played is trained on, whatever
    the seconds: they decide whether another round is begun.

    A round's episodes are stored before they are trained on, so that a resumed run finds its place in them. On Ctrl-C saves a
    checkpoint and raises Interrupted; while episodes are played there is nothing to save, and the round is played anew.
    """
    budget = Budget(settings.steps, settings.seconds)
    state = folder.state
    begin = time.monotonic() - state.stage_seconds

    def spent() -> float:
        return budget.progress(state.step, time.monotonic() - begin)

    first = 0  # the round's first step
    with bar(stage, settings.rounds) as progress_bar:
        for number in range(settings.rounds):
            label = f"round {number + 1}/{settings.rounds}"
            requests = requests_of(settings, tasks, number, seed, stage)
            trajectories = store.read(stage, number)
            if len(trajectories) < len(requests):  # not played yet, or not to its end
                if spent() >= 1.0:
                    break
                played = 0

                def on_done(_: Trajectory, number: int = number, label: str = label, total: int = len(requests)) -> None:
                    nonlocal played
                    played += 1
                    progress_bar.update(number, f"{label}: {played}/{total} episodes")
                    if stop.raised:
                        raise Interrupted

                asked = time.monotonic()
                trajectories = parts.pool.play(requests, on_done)
                seconds = time.monotonic() - asked
                store.write(stage, number, trajectories)
                counts = keep(trajectories, settings)[1]
                folder.count("rft_sampled", sum(t.sampled_tokens for t in trajectories))
                numbers = {"round": float(number), **counts, **episode_metrics(trajectories)}
                numbers |= engine_metrics(trajectories, seconds, parts.pool.places) | {"seconds/rollout": seconds}
                tracker.log(stage, state.step, numbers, trajectories)
            samples = samples_of(keep(trajectories, settings)[0])
            last = first + steps_of(len(samples), settings)
            trained = False
            while state.step < min(last, settings.steps or last):
                batch = batch_at(samples, state.step - first, settings.batch_size, seed + number)
                lr = settings.lr * min(1.0, (state.step + 1) / max(1, settings.warmup_steps))
                metrics = parts.learner.update(batch, None, lr)
                folder.count("rft_trained", metrics["tokens"])
                tracker.log(stage, state.step, metrics | {"tokens_per_s": metrics["tokens"] / metrics["seconds"]})
                state.step += 1
                trained = True
                state.stage_seconds = time.monotonic() - begin
                folder.note(stage, metrics)
                progress_bar.update(
                    number + (state.step - first) / (last - first), f"{label}: step {state.step} loss {metrics['loss']:.3f}"
                )
                if stop.raised:
                    break
            first = last
            if trained:
                parts.sync.run()
            last_round = number + 1 == settings.rounds or spent() >= 1.0  # its checkpoint is the stage's
            if trained and (stop.raised or not last_round):
                folder.checkpoint(f"{stage}-{state.step:05d}", parts.learner, {"stage": stage, "step": state.step})
            if stop.raised:
                raise Interrupted
    return state.step
