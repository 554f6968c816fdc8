"""The study: who is compared with whom, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.errors import TaudojoError
from envs.types import StopReason, Transcript
from rewards.breakdown import RewardBreakdown
from rewards.metrics import EpisodeMetrics
from rollouts.store import TrajectoryStore
from rollouts.trajectory import TokenSegment, Trajectory
from training.compose import load
from training.run import RunFolder
from training.stages import sft
from training.stages.study import StudySession, compare, draw, print_study


def played(task_id: str, f1: float) -> Trajectory:
    metrics = EpisodeMetrics(task_id, "lookup", 1, 1, f1, f1, f1, f1 == 1.0, True, f1 == 1.0, False, f1, f1, "user_stop")
    tokens = [TokenSegment([5], [True], [0.0], [(0, 1, 0)])]
    transcript = Transcript(task_id, "retail", (), StopReason.USER_STOP)
    return Trajectory(transcript, "lookup", tokens, RewardBreakdown(f1), metrics, "eval", 0, 0, 0)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Two seeds, three tasks: GRPO solves one task more than the checkpoint and one more than SFT, with seed 1 only."""
    folder = RunFolder.create(load(["+experiment=grpo_study", f"output_dir={tmp_path}", "study.seeds=[0,1]"]))
    store = TrajectoryStore(folder.path / "trajectories")
    for stage, scores in {
        "eval/after_sft": (0.0, 0.5, 1.0),
        "eval/grpo-0": (0.0, 0.5, 1.0),
        "eval/grpo-1": (1.0, 0.5, 1.0),
        "eval/sft_continued-0": (0.0, 0.5, 1.0),
        "eval/sft_continued-1": (0.0, 0.5, 1.0),
    }.items():
        store.write(stage, 0, [played(f"task-{n}", score) for n, score in enumerate(scores)])
    return folder


def config(**study: Any) -> Any:
    return load(["+experiment=grpo_study", "study.seeds=[0,1]", *(f"study.{key}={value}" for key, value in study.items())])


def test_arms_are_compared_task_by_task_and_seed_by_seed(folder: RunFolder):
    results = compare(folder.path, config(), {"arm/grpo-0": 301.5})
    assert results["heldout_tasks"] == 3
    assert results["checkpoint"]["action_f1"] == pytest.approx(0.5)
    assert results["seconds"]["arm/grpo-0"] == 301.5
    difference = results["difference"]["action_f1"]
    assert difference["0"]["mean"] == 0.0
    assert difference["1"]["mean"] == pytest.approx(1 / 3)
    assert difference["pooled"]["mean"] == pytest.approx(1 / 6)
    assert difference["grpo_minus_checkpoint"]["mean"] == pytest.approx(1 / 6)
    low, high = difference["pooled"]["ci95"]
    assert low <= 1 / 6 <= high


def test_the_results_are_drawn_and_printed(folder: RunFolder, capsys: pytest.CaptureFixture[str]):
    results = compare(folder.path, config(), {})
    draw(results, folder.path / "study.png")
    assert (folder.path / "study.png").read_bytes().startswith(b"\x89PNG")
    print_study(results)
    assert "GRPO" in capsys.readouterr().out


def test_every_seed_has_both_arms_after_one_checkpoint(folder: RunFolder):
    names = [name for name, _ in StudySession(config(), folder).plan()]
    assert names == ["sft", "eval/after_sft", "arm/grpo-0", "arm/sft_continued-0", "arm/grpo-1", "arm/sft_continued-1"]


def test_the_continued_sft_gets_the_seconds_that_grpo_took(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    given: list[tuple[float | None, float]] = []
    monkeypatch.setattr(sft, "run_sft", lambda settings, *_, **__: given.append((settings.seconds, settings.lr)))
    session: Any = StudySession(config(sft_lr=1e-4), folder)
    session.learner = SimpleNamespace(load=lambda path: None)
    session.sync = SimpleNamespace(run=lambda: None)
    session.sft_samples = lambda: ([], [], [])
    session.store = session.tracker = None
    session.evaluate = lambda stage, stop: None
    folder.state.seconds["arm/grpo-0"] = 317.25
    session.arm("arm/sft_continued-0", None)
    assert given == [(317.25, 1e-4)]


def test_a_checkpoint_that_is_not_there_is_one_sentence(folder: RunFolder):
    session = StudySession(config(run="outputs/nothing"), folder)
    with pytest.raises(TaudojoError, match=r"study\.run=outputs/nothing: there is no checkpoint-sft in it"):
        session.adopt("sft", None)  # type: ignore[arg-type]


def test_an_adopted_checkpoint_reaches_learner_and_engine(folder: RunFolder, tmp_path: Path):
    source = tmp_path / "finished" / "checkpoint-sft"
    source.mkdir(parents=True)
    (source / "state.json").write_text("{}")
    done: list[str] = []
    session: Any = StudySession(config(run=str(source.parent)), folder)
    session.learner = SimpleNamespace(load=lambda path: done.append(path.name))
    session.sync = SimpleNamespace(run=lambda: done.append("sync"))
    session.adopt("sft", None)
    assert done == ["checkpoint-sft", "sync"]
    assert folder.state.checkpoint == "checkpoint-sft"
