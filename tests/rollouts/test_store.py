"""The trajectory store: what was written is read back, and a damaged line names its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rollouts.gold import gold_trajectories
from rollouts.store import TrajectoryStore, read_file
from rollouts.trajectory import TokenSegment, Trajectory


@pytest.fixture(scope="module")
def trajectories(world: Any, task_sets: Any) -> list[Trajectory]:
    """Real episodes, the second one with log-probs and two segments."""
    first, second = gold_trajectories(world, task_sets.heldout[:2], stage="eval/before")
    segment = first.segments[0]
    sampled = replace(segment, logprobs=[-0.125 * (at % 9) if m else 0.0 for at, m in enumerate(segment.loss_mask)])
    short = TokenSegment([1, 2, 3], [False, True, True], [0.0, -1.5, -2.25], [(1, 3, 4)])
    return [first, replace(second, segments=[sampled, short], timings={"generate": 1.25}, cached_tokens=12, seconds=2.5)]


def rounded(trajectory: Trajectory) -> Trajectory:
    """With clocks as the file keeps them."""
    timings = {name: round(value, 4) for name, value in trajectory.timings.items()}
    return replace(trajectory, seconds=round(trajectory.seconds, 3), timings=timings)


def test_trajectories_survive_their_file(tmp_path: Path, trajectories: list[Trajectory]):
    store = TrajectoryStore(tmp_path / "trajectories")
    path = store.write("eval/before", 3, trajectories)
    assert path == tmp_path / "trajectories" / "eval-before-0003.jsonl"
    assert store.read("eval/before", 3) == [rounded(t) for t in trajectories]


def test_a_line_has_what_a_reader_looks_for(tmp_path: Path, trajectories: list[Trajectory]):
    path = TrajectoryStore(tmp_path).write("grpo", 0, trajectories)
    line = json.loads(path.read_text().splitlines()[1])
    assert {"schema", "task_id", "kind", "stage", "step", "group", "seed", "messages", "stop_reason"} <= line.keys()
    assert line["reward"].keys() == {"total", "components"}
    assert line["tokens"]["sampled"] == trajectories[1].sampled_tokens
    assert line["tokens"]["total"] == trajectories[1].tokens
    assert line["tokens"]["prompt"] == trajectories[1].segments[0].loss_mask.index(True)


def test_a_step_written_again_replaces_the_file_and_leaves_nothing_else(tmp_path: Path, trajectories: list[Trajectory]):
    store = TrajectoryStore(tmp_path)
    store.write("grpo", 1, trajectories)
    store.write("grpo", 1, trajectories[:1])
    assert len(store.read("grpo", 1)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["grpo-0001.jsonl"]


def test_an_episode_without_a_turn_can_be_kept(tmp_path: Path, trajectories: list[Trajectory]):
    silent = replace(trajectories[0], segments=[TokenSegment([1, 2], [False, False], [0.0, 0.0], [])])
    store = TrajectoryStore(tmp_path)
    store.write("grpo", 0, [silent])
    assert store.read("grpo", 0) == [rounded(silent)]


@pytest.mark.parametrize("damage", ["{", '{"schema": 1}', "[]", '{"schema": 99}'])
def test_a_damaged_line_names_file_and_line(tmp_path: Path, trajectories: list[Trajectory], damage: str):
    path = TrajectoryStore(tmp_path).write("grpo", 0, trajectories)
    with path.open("a") as file:
        file.write(damage + "\n")
    with pytest.raises(ValueError, match=r"grpo-0000\.jsonl:3: not a trajectory"):
        list(read_file(path))
