"""The data of SFT: episodes from trajectory files, checked before they are trained on, and the tasks that are held out.

    recorded = read_recorded(["outputs/my-run/trajectories"], world)
    train, heldout = split_by_task(recorded, fraction=0.1, seed=0)

A recorded episode is trained on as it was recorded: its tokens, and loss where its mask says that the policy wrote them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from envs.errors import TaudojoError
from rollouts.chat import ChatFormat
from rollouts.episode import World
from rollouts.store import read_file, trajectory_files
from rollouts.trajectory import TokenSegment, Trajectory

#: Of the customer's first words, so many characters are looked for in the decoded tokens.
_COMPARED_CHARS = 200


def read_recorded(paths: Sequence[str | Path], world: World) -> list[Trajectory]:
    """All episodes of these files, and of the trajectory files in these folders.

    Raises:
        TaudojoError: a path has no such file, a line is no trajectory, or its tokens are not of the run's tokenizer.
    """
    trajectories = []
    for file in _files(paths):
        try:
            for number, trajectory in enumerate(read_file(file), 1):
                if wrong := _fault(trajectory, world.chat):
                    raise TaudojoError(f"sft.trajectories: {file}:{number}: {wrong}")
                trajectories.append(trajectory)
        except ValueError as error:
            raise TaudojoError(f"sft.trajectories: {error}; mend or remove the line") from error
    return trajectories


def usable(
    trajectories: Sequence[Trajectory], *, max_tokens: int, min_reward: float | None, unseen: Collection[str]
) -> tuple[list[Trajectory], dict[str, int]]:
    """Those to train on, and how many were left out, by the reason: `empty`, `longer than the context`, `below min_reward`, and
    `evaluated` for tasks of `unseen`, by which the run is measured."""
    left_out: Counter[str] = Counter()
    kept = []
    for trajectory in trajectories:
        if not any(any(s.loss_mask[1:]) for s in trajectory.segments):
            left_out["empty"] += 1
        elif max(len(s.token_ids) for s in trajectory.segments) > max_tokens:
            left_out["longer than the context"] += 1
        elif min_reward is not None and trajectory.reward.total < min_reward:
            left_out["below min_reward"] += 1
        elif trajectory.transcript.task_id in unseen:
            left_out["evaluated"] += 1
        else:
            kept.append(trajectory)
    return kept, dict(left_out)


def split_by_task(trajectories: Sequence[Trajectory], fraction: float, seed: int) -> tuple[list[Trajectory], list[Trajectory]]:
    """Those to train on and those held out: all episodes of a seeded choice of tasks, `fraction` of them and at least one.

    Raises:
        TaudojoError: one task alone cannot be split.
    """
    if fraction == 0:
        return list(trajectories), []
    tasks = sorted({t.transcript.task_id for t in trajectories})
    if len(tasks) < 2:
        raise TaudojoError("sft.heldout_fraction: the episodes are of one task, which cannot be split; set it to 0, or add tasks")
    number = min(len(tasks) - 1, max(1, round(fraction * len(tasks))))
    chosen = np.random.default_rng([seed, 13]).permutation(len(tasks))[:number]
    held = {tasks[i] for i in chosen}
    return (
        [t for t in trajectories if t.transcript.task_id not in held],
        [t for t in trajectories if t.transcript.task_id in held],
    )


def _files(paths: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        found = [path] if path.is_file() else trajectory_files(path)
        if not found:
            raise TaudojoError(f"sft.trajectories: {path} is no trajectory file, nor a folder with *.jsonl files in it")
        files += found
    return files


def _fault(trajectory: Trajectory, chat: ChatFormat) -> str | None:
    """Why the episode's tokens cannot be trained on; None where they can."""
    vocabulary = len(chat.tokenizer)
    for segment in trajectory.segments:
        if wrong := _uneven(segment):
            return wrong
        strange = next((i for i in segment.token_ids if not 0 <= i < vocabulary), None)
        if strange is not None:
            return f"token {strange} is not one of this tokenizer's {vocabulary}; the episode was recorded with another model"
    said = next((m.content for m in trajectory.transcript.agent_messages if m.role == "user" and m.content), None)
    if said and trajectory.tokens:
        wanted = _bare(said)[:_COMPARED_CHARS]
        if wanted not in _bare(chat.decode(trajectory.segments[0].token_ids)):
            return "the tokens do not spell the customer's words; the episode was recorded with another tokenizer"
    return None


def _uneven(segment: TokenSegment) -> str | None:
    lengths = {"token_ids": len(segment.token_ids), "loss_mask": len(segment.loss_mask), "logprobs": len(segment.logprobs)}
    if len(set(lengths.values())) > 1:
        return "a segment has " + ", ".join(f"{length} {name}" for name, length in lengths.items())
    return None


def _bare(text: str) -> str:
    """Without white space, in one Unicode form: what tokenizers may change."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def shortest_of_each_kind(trajectories: Sequence[Trajectory], share: float) -> list[Trajectory]:
    """The shortest `share` of each kind's episodes, at least one, in their order.

    Seconds buy more of them: their context costs less, and each shows the kind's calls all the same.
    """
    of_kind: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        of_kind.setdefault(trajectory.kind, []).append(trajectory)
    kept = {id(t) for same in of_kind.values() for t in sorted(same, key=lambda t: t.tokens)[: max(1, round(share * len(same)))]}
    return [t for t in trajectories if id(t) in kept]
