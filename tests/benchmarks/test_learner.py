"""The learner benchmark on a made-up trajectory file and a tiny random model: its batch, its arithmetic, its result line."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import learner, ours_learner
from benchmarks.batch import read_batch, whole_groups
from benchmarks.flops import Shape, work
from envs.errors import TaudojoError
from envs.types import Message, Transcript
from rewards.breakdown import RewardBreakdown
from rewards.metrics import EpisodeMetrics
from rollouts.store import TrajectoryStore
from rollouts.trajectory import TokenSegment, Trajectory

KEYS = [
    "tokens",
    "unique_tokens",
    "dedup_ratio",
    "flop_ratio",
    "tree_s",
    "plain_s",
    "plain_tokens_per_s",
    "tree_tokens_per_s",
    "trl_tokens_per_s",
    "speedup_vs_plain",
    "speedup_vs_trl",
    "grad_rel_err",
    "logprob_max_abs",
    "peak_rss_ratio",
    "gemm_tflops_peak",
    "mfu_unique",
]


def episode(group: int, member: int, reward: float) -> Trajectory:
    """40 tokens of prompt that all share, a turn that the group shares, and a turn of its own."""
    own = 200 + 50 * group + 20 * member
    ids = [*range(40), *range(100 + 10 * group, 108 + 10 * group), *range(own, own + 12)]
    mask = [at >= 40 and at != 44 for at in range(len(ids))]
    metrics = EpisodeMetrics(f"task_{group}", "cancel", 1, 1, 1.0, 1.0, 1.0, True, True, True, False, reward, reward, "user_stop")
    return Trajectory(
        transcript=Transcript(f"task_{group}", "retail", (Message("assistant", "Hello."),), None),
        kind="cancel",
        segments=[TokenSegment(ids, mask, [0.0] * len(ids), [])],
        reward=RewardBreakdown(reward),
        metrics=metrics,
        stage="grpo",
        step=3,
        group=group,
        seed=member,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    played = [episode(group, member, float(member)) for group in range(2) for member in range(2)]
    return TrajectoryStore(tmp_path / "trajectories").write("grpo", 3, played)


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a part in this process, TRL's by a made-up figure; notes what was run."""
    monkeypatch.setattr(ours_learner, "gemm_tflops", lambda dtype: 2.0)
    threads = torch.get_num_threads()
    kinds: list[str] = []

    def run(module: str, job: dict[str, Any]) -> dict[str, Any]:
        kinds.append(job.get("kind", module))
        return {"seconds": 2.0, "tokens": 100} if module == learner.TRL else dict(ours_learner.run(job))

    run.kinds = kinds  # type: ignore[attr-defined]
    yield run
    torch.set_num_threads(threads)


def test_the_last_line_has_the_promised_keys(file: Path, model: Path, here: Any, capsys: pytest.CaptureFixture[str]):
    assert learner.main(["--model", str(model), "--trajectories", str(file), "--repetitions", "2"], here) == 0
    assert here.kinds == ["tree", "plain", "tree", "plain", "gemm", "exact", learner.TRL]
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(line) == KEYS
    assert line["tokens"] == sum(len(row.token_ids) for row in read_batch(file, 8192))
    assert line["unique_tokens"] < line["tokens"]
    assert line["trl_tokens_per_s"] == 50.0
    assert line["grad_rel_err"] < 1e-5
    assert line["logprob_max_abs"] < 1e-4
    assert all(math.isfinite(value) for value in line.values())


def test_without_trl_its_figures_are_null(file: Path, model: Path, here: Any, capsys: pytest.CaptureFixture[str]):
    arguments = ["--model", str(model), "--trajectories", str(file), "--repetitions", "1", "--official"]
    assert learner.main(arguments, here) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["trl_tokens_per_s"], line["speedup_vs_trl"]) == (None, None)


def test_growth_is_a_table(file: Path, model: Path, here: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learner, "GROWTH", (2, 4))
    lines = learner.growth(learner.parse_arguments([]), model, file, here)
    assert [line.split("|")[1].strip() for line in lines] == ["episodes", "---", "2", "4"]


def test_figures_follow_from_what_was_measured(file: Path):
    shape = Shape(2, 64, 2, 1, 32, 128, 512)
    rows = read_batch(file, 8192)
    updates = {
        "tree": [{"seconds": s, "peak_bytes": 100.0} for s in (9.0, 2.0, 1.0)],
        "plain": [{"seconds": s, "peak_bytes": 80.0} for s in (3.0, 4.0, 9.0)],
    }
    exact = {"grad_rel_err": 1e-6, "logprob_max_abs": 1e-5}
    line = learner.result(shape, rows, updates, 0.001, exact, {"seconds": 10.0, "tokens": 100})
    tokens = line["tokens"]
    assert (line["tree_s"], line["plain_s"], line["speedup_vs_plain"]) == (2.0, 4.0, 2.0)
    assert line["speedup_vs_trl"] == pytest.approx(tokens / 2.0 / 10.0, abs=1e-3)
    assert line["peak_rss_ratio"] == 1.25
    needed = work([row.token_ids for row in rows], [row.loss_mask for row in rows], share=True).flops(shape)
    assert line["mfu_unique"] == pytest.approx(needed / 2e9, abs=1e-3)


def test_the_learner_s_part_runs_alone(file: Path, model: Path, tmp_path: Path):
    job = {"kind": "tree", "model": str(model), "trajectories": str(file), "max_tokens": 64, "dtype": "bfloat16"}
    (tmp_path / "job.json").write_text(json.dumps(job | {"micro_batch_tokens": 4096}))
    subprocess.run(
        [sys.executable, "-m", "benchmarks.ours_learner", str(tmp_path / "job.json"), str(tmp_path / "result.json")],
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    measured = json.loads((tmp_path / "result.json").read_text())
    assert set(measured) == {"seconds", "computed_tokens", "peak_bytes"}
    assert measured["peak_bytes"] > 1e6


def test_an_advantage_is_the_distance_from_the_group_s_mean_and_tokens_are_cut(file: Path):
    rows = read_batch(file, 50)
    assert [row.advantage for row in rows] == [-0.5, 0.5, -0.5, 0.5]
    assert [row.group for row in rows] == [0, 0, 1, 1]
    assert {len(row.token_ids) for row in rows} == {50}
    assert [len(group) for group in whole_groups(rows)] == [2, 2]


def test_episodes_that_cannot_be_trained_on_are_named(file: Path, tmp_path: Path):
    with pytest.raises(TaudojoError, match="wrote nothing in the first 40 tokens of an episode of task task_0"):
        read_batch(file, 40)
    with pytest.raises(TaudojoError, match="has 4 episodes and 5 are wanted"):
        read_batch(file, 50, 5)
    with pytest.raises(TaudojoError, match="no such file"):
        read_batch(tmp_path / "nothing.jsonl", 50)
    with pytest.raises(TaudojoError, match="groups of one size"):
        whole_groups(read_batch(file, 50, 3))
