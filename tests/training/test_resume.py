"""A run that is killed, again and again, ends where an unbroken one does: same losses, same weights, to the last bit.

SFT on a fixed trajectory file, in float32, of a small random model with SmolLM2's tokenizer. Nothing is evaluated, so no engine
is started; everything else is the command as users run it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rollouts.gold import gold_trajectories
from rollouts.store import TrajectoryStore

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
KILLS = 10


@pytest.fixture(scope="module")
def small_model(smollm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, random weights, SmolLM2's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("small_model")
    tokenizer = AutoTokenizer.from_pretrained(smollm_path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def command(world: Any, task_sets: Any, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """SFT on the expert's episodes of twelve tasks, as a file has them."""
    store = TrajectoryStore(tmp_path_factory.mktemp("recorded"))
    file = store.write("gold", 0, gold_trajectories(world, task_sets.heldout[:12], stage="gold"))
    return [
        "name=fixed",
        "deterministic=true",
        "model.dtype=float32",
        "cluster=local",
        "tracking=none",
        f"model.path={small_model}",
        "model.max_model_len=2048",
        "env=mock",
        "evaluate.enabled=false",
        "grpo.enabled=false",
        "sft.gold=false",
        f"sft.trajectories={file}",
        "sft.heldout_fraction=0.2",
        "sft.heldout_steps=10",
        "sft.batch_size=2",
        f"sft.steps={STEPS}",
        "sft.checkpoint_steps=1",
        "checkpoints.keep=2",
        "checkpoints.best=sft/heldout_loss",
    ]


def start(cwd: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command, with all that it starts in a process group of its own."""
    cwd.mkdir(exist_ok=True)
    with (cwd / "out.txt").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "training.main", *arguments],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], cwd: Path) -> Path:
    """Waits for the command and returns the run's folder."""
    assert process.wait(timeout=900) == 0, (cwd / "out.txt").read_text()[-3000:]
    (folder,) = (cwd / "outputs").iterdir()
    return folder


def losses(folder: Path) -> dict[int, tuple[float, float | None]]:
    """Step → training and held-out loss; of a step that was taken again, the last."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["metrics"]["loss"], line["metrics"].get("heldout_loss")) for line in lines}


def arguments(cwd: Path, command: list[str]) -> list[str]:
    """The command, or what goes on with the run that is there."""
    runs = list(cwd.glob("outputs/*/state.json"))
    return [f"resume={runs[0].parent}"] if runs else command


def taken(cwd: Path) -> int:
    """Lines of metrics so far."""
    return sum(len(file.read_text().splitlines()) for file in cwd.glob("outputs/*/metrics.jsonl"))


@pytest.mark.slow
def test_a_run_without_evaluation_trains_on_recorded_episodes_and_starts_no_engine(command: list[str], tmp_path: Path):
    folder = finish(start(tmp_path, *command, "sft.steps=3", "checkpoints.keep=1"), tmp_path)
    out = (tmp_path / "out.txt").read_text()
    assert "starting the learner" in out
    assert "recorded episodes" in out
    assert list(losses(folder)) == [0, 1, 2]
    state = json.loads((folder / "state.json").read_text())
    assert state["done"] == ["sft", "export", "export/best"]
    for name in ("final_model", "best_model", "sft_model"):
        assert (folder / name / "model.safetensors").is_file()
    assert (folder / "report.html").is_file()
    assert json.loads((folder / "summary.json").read_text())["tokens"]["sft"] > 0


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_an_unbroken_one(command: list[str], tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with start(whole, *command) as unbroken:  # beside the other, which mostly starts and so keeps one core busy
        kill_again_and_again(broken, command)
        got = finish(start(broken, *arguments(broken, command)), broken)
        expected = finish(unbroken, whole)
    assert losses(got) == losses(expected)
    assert list(losses(got)) == list(range(STEPS))
    for model in ("final_model", "best_model"):
        one, other = ((f / model / "model.safetensors").read_bytes() for f in (got, expected))
        assert one == other, model
    assert not list(got.glob("damaged-*"))


def kill_again_and_again(cwd: Path, command: list[str]) -> None:
    """Starts and goes on with the run, and kills all its processes each time, while it trains or while it starts."""
    rng = random.Random(0)
    for number in range(KILLS):
        before = taken(cwd)
        process = start(cwd, *arguments(cwd, command))
        if number % 3 == 2:  # also while it starts
            time.sleep(rng.uniform(0.0, 15.0))
        else:
            deadline = time.monotonic() + 300
            while taken(cwd) <= before:  # a resumed run first drops what it takes again
                assert process.poll() is None and time.monotonic() < deadline, (cwd / "out.txt").read_text()[-3000:]
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 1.5))
        assert process.poll() is None, f"done before kill {number + 1}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
