"""The learner benchmark on random weights, at its tiniest and on a CPU; a GPU takes the same path."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import random_learner

ROOT = Path(__file__).resolve().parents[2]


def test_it_runs_end_to_end_in_a_process_without_ray():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.random_learner", "tiny", "--repetitions", "1"],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["tokens"] == 24 * 130
    assert line["unique_tokens"] == 50 + 4 * 30 + 24 * 50
    assert line["device"] == "cpu" and line["tree_peak_gib"] is None
    for name in ("tree_s", "plain_s", "speedup_vs_plain", "flop_ratio", "gemm_tflops_peak"):
        assert math.isfinite(line[name]) and line[name] > 0, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_cuda_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    assert random_learner.main(["tiny", "--device", "cuda"]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err


def test_the_large_preset_is_as_large_as_it_says():
    from transformers import AutoModelForCausalLM, Qwen3Config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            Qwen3Config(**random_learner.PRESETS["qwen3-1.7b"][-1], tie_word_embeddings=True)
        )
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.72e9, rel=0.01)
    lengths = {len(row.token_ids) for row in random_learner.random_rows("qwen3-1.7b")}
    assert lengths == {1100}
