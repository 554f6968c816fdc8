"""The memory plan: measured for the laptop's model, scaled for others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.config import load
from training.resources import memory_plan


def plan(folder: Path, *overrides: str) -> dict[str, float]:
    return memory_plan(load(["+experiment=grpo", *overrides]), str(folder))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """SmolLM2-135M's sizes, without its weights."""
    shape = {"num_hidden_layers": 30, "hidden_size": 576, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(269_060_552)
    return tmp_path


def test_the_learner_s_plan_is_near_what_was_measured(model: Path):
    assert plan(model, "learner.micro_batch_tokens=4096")["learner"] == pytest.approx(7.6, rel=0.1)


def test_smaller_micro_batches_need_less(model: Path):
    large, small = (plan(model, f"learner.micro_batch_tokens={tokens}")["learner"] for tokens in (4096, 2048))
    assert 1.5 < large - small < 2.5


def test_an_adapter_needs_less_than_all_weights(model: Path):
    everything, adapter = (plan(model, *lora)["learner"] for lora in ([], ["learner.lora.rank=8"]))
    assert everything - adapter == pytest.approx(134_530_276 * 10 / 2**30)


def test_the_cache_counts_for_every_worker(model: Path):
    assert plan(model, "rollout.kv_cache_gib=3", "cluster.rollout_workers=2")["KV cache"] == 6.0
