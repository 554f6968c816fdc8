"""The trajectory store: what was written is read back, a crash costs a line at most, and a damaged line names its place."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.errors import TaudojoError
from rollouts import store as store_module
from rollouts.gold import gold_trajectories
from rollouts.store import TrajectoryStore, read_file, read_folder, rows
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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("compress", [True, False])
def test_trajectories_survive_their_file(tmp_path: Path, trajectories: list[Trajectory], compress: bool):
    store = TrajectoryStore(tmp_path / "trajectories", compress)
    path = store.write("eval/before", 3, trajectories)
    assert path == tmp_path / "trajectories" / f"eval-before-0003-w0.jsonl{'.zst' if compress else ''}"
    assert store.read("eval/before", 3) == [rounded(t) for t in trajectories]
    assert list(read_file(path)) == [rounded(t) for t in trajectories]


def test_a_segment_keeps_its_numbers_in_arrays_also_in_another_process():
    segment = TokenSegment([1, 70_000], [False, True], [0.0, -1.5], [(1, 2, 0)])  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(segment)) == segment
    assert segment.token_ids == array("i", [1, 70_000])
    assert segment.loss_mask == array("b", [0, 1])
    assert segment.logprobs == array("d", [0.0, -1.5])
    assert segment.sampled == 1


def test_a_line_has_what_a_reader_looks_for(tmp_path: Path, trajectories: list[Trajectory]):
    TrajectoryStore(tmp_path).write("grpo", 0, trajectories)
    line = list(rows(tmp_path))[1]
    assert {"schema", "index", "task_id", "kind", "stage", "step", "group", "seed", "messages", "stop_reason"} <= line.keys()
    assert line["reward"].keys() == {"total", "components"}
    assert line["tokens"]["sampled"] == trajectories[1].sampled_tokens
    assert line["tokens"]["total"] == trajectories[1].tokens
    assert line["tokens"]["prompt"] == trajectories[1].segments[0].loss_mask.index(True)


def test_each_worker_has_a_file_and_a_step_is_read_in_the_order_of_its_requests(tmp_path: Path, trajectories: list[Trajectory]):
    played = [replace(trajectories[n % 2], stage="grpo", step=4, worker=(n + 1) % 3, seed=n) for n in range(5)]
    store = TrajectoryStore(tmp_path)
    for index in (3, 0, 4, 1, 2):
        store.append(played[index], index)
    assert names(tmp_path) == [f"grpo-0004-w{n}.jsonl.zst" for n in range(3)]
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    store.write("grpo", 4, played)  # it is all there
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert store.read("grpo", 4) == [rounded(t) for t in played]
    assert list(read_file(tmp_path / "grpo-0004.jsonl")) == [rounded(t) for t in played]
    assert sorted(t.seed for t in read_folder(tmp_path, "grpo")) == list(range(5))
    assert list(read_folder(tmp_path, "grp")) == []


def test_a_step_that_is_begun_anew_replaces_what_was_there(tmp_path: Path, trajectories: list[Trajectory]):
    played = [replace(t, stage="grpo", step=1, worker=n) for n, t in enumerate(trajectories)]
    killed = TrajectoryStore(tmp_path)
    killed.append(played[0], 0)
    killed.append(played[1], 1)
    resumed = TrajectoryStore(tmp_path)
    resumed.append(played[0], 0)
    assert resumed.read("grpo", 1) == [rounded(played[0])]
    resumed.write("grpo", 1, played)
    resumed.write("grpo", 1, played[:1])
    assert resumed.read("grpo", 1) == [rounded(played[0])]
    assert names(tmp_path) == ["grpo-0001-w0.jsonl.zst"]


@pytest.mark.parametrize("compress", [True, False])
def test_a_crash_costs_no_more_than_the_line_that_was_being_written(
    tmp_path: Path, trajectories: list[Trajectory], compress: bool, caplog: pytest.LogCaptureFixture
):
    store = TrajectoryStore(tmp_path, compress)
    played = [replace(t, stage="grpo", step=0) for t in trajectories]
    store.append(played[0], 0)
    whole = store.path("grpo", 0).stat().st_size
    store.append(played[1], 1)
    content = store.path("grpo", 0).read_bytes()
    for length in range(whole + 1, len(content), max(1, (len(content) - whole) // 40)):
        store.path("grpo", 0).write_bytes(content[:length])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert store.read("grpo", 0) in ([rounded(played[0])], [rounded(p) for p in played])
    assert store.read("grpo", 0) == [rounded(played[0])] or compress


def test_files_of_before_are_read(tmp_path: Path, trajectories: list[Trajectory]):
    old = [{k: v for k, v in t.to_json().items() if k not in ("worker", "attempts")} for t in trajectories]
    path = tmp_path / "eval-before-0000.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    assert list(read_file(path)) == TrajectoryStore(tmp_path).read("eval/before", 0) == [rounded(t) for t in trajectories]


def test_an_episode_without_a_turn_can_be_kept(tmp_path: Path, trajectories: list[Trajectory]):
    silent = replace(trajectories[0], segments=[TokenSegment([1, 2], [False, False], [0.0, 0.0], [])])
    store = TrajectoryStore(tmp_path)
    store.write("grpo", 0, [silent])
    assert store.read("grpo", 0) == [rounded(silent)]


@pytest.mark.parametrize("damage", ["{", '{"schema": 1}', "[]", '{"schema": 99}'])
def test_a_damaged_line_names_file_and_line(tmp_path: Path, trajectories: list[Trajectory], damage: str):
    path = TrajectoryStore(tmp_path, compress=False).write("grpo", 0, trajectories)
    with path.open("a") as file:
        file.write(damage + "\n")
    with pytest.raises(ValueError, match=r"grpo-0000-w0\.jsonl:3: not a trajectory"):
        list(read_file(path))


def test_damage_in_a_compressed_file_is_told(tmp_path: Path, trajectories: list[Trajectory]):
    path = TrajectoryStore(tmp_path).write("grpo", 0, trajectories)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"grpo-0000-w0\.jsonl\.zst:\d+: not a trajectory"):
        list(read_file(path))


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such trajectory file"):
        list(read_file(tmp_path / "grpo-0000.jsonl"))


def test_without_zstandard_lines_are_plain_and_compressed_ones_are_refused(
    tmp_path: Path, trajectories: list[Trajectory], monkeypatch: pytest.MonkeyPatch
):
    compressed = TrajectoryStore(tmp_path / "a").write("grpo", 0, trajectories)
    monkeypatch.setattr(store_module, "find_spec", lambda name: None)
    assert TrajectoryStore(tmp_path / "b").write("grpo", 0, trajectories).suffix == ".jsonl"
    with pytest.raises(TaudojoError, match="the package zstandard is missing"):
        list(read_file(compressed))


def test_the_store_is_imported_without_zstandard():
    program = "import sys, rollouts.store; sys.exit('zstandard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(store_module.__file__).parents[1]).returncode == 0


def test_an_episode_takes_a_few_kilobytes(tmp_path: Path, trajectories: list[Trajectory]):
    path = TrajectoryStore(tmp_path).write("grpo", 0, trajectories)
    assert path.stat().st_size / len(trajectories) < 8000
