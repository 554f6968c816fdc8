"""The plans of memory and disk: measured for the laptop's model, scaled for others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from envs.errors import TaudojoError
from taudojo.doctor import RUN_MEMORY
from training.compose import load
from training.resources import check_resources, disk_plan_gb, memory_plan


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


def test_micro_batches_that_follow_the_episodes_are_planned_for_the_official_prompt(model: Path):
    def learner(*keys: str) -> float:
        return plan(model, "grpo.samples_per_task=8", *keys)["learner"]

    assert learner() == learner("learner.micro_batch_tokens=4096")
    official = ("env.prompt=official", "model.max_model_len=8192")
    assert learner(*official) == learner("learner.micro_batch_tokens=8192", *official) > learner()


def test_an_adapter_needs_less_than_all_weights(model: Path):
    everything, adapter = (plan(model, *lora)["learner"] for lora in ([], ["learner.lora.rank=8"]))
    assert everything - adapter == pytest.approx(134_530_276 * 10 / 2**30)


def test_the_cache_counts_for_every_worker(model: Path):
    assert plan(model, "rollout.kv_cache_gib=3", "cluster.rollout_workers=2")["KV cache"] == 6.0


def test_the_doctor_wants_as_much_memory_as_a_run_without_which_it_does_not_start(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    main = load(["+experiment=grpo", "cluster=local"])
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("training.resources.memory", lambda: (0, int(1.01 * RUN_MEMORY)))
    check_resources(main, str(model), tmp_path / "run")
    monkeypatch.setattr("training.resources.memory", lambda: (0, int(0.99 * RUN_MEMORY)))
    with pytest.raises(TaudojoError, match=r"too little memory: the run needs about 15\.7 GiB .* and 11\.7 GiB are free"):
        check_resources(main, str(model), tmp_path / "run")


def test_the_disk_plan_holds_every_checkpoint_the_run_keeps_and_the_one_being_written(model: Path):
    def gb(*overrides: str) -> float:
        return disk_plan_gb(load(["+experiment=grpo", *overrides]), str(model))

    checkpoint = 134_530_276 * 13 / 1e9
    assert gb() == pytest.approx(3 * checkpoint + 1.04, abs=0.01)
    assert gb("checkpoints.keep=4") - gb() == pytest.approx(3 * checkpoint)
    assert gb("checkpoints.best=grpo/reward/mean") - gb() == pytest.approx(checkpoint)
    assert gb("learner.lora.rank=8") < 1.1


def test_a_resumed_run_needs_room_for_the_rest_only(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("training.resources.memory", lambda: (64 * 2**30, 64 * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000_000))
    config, run = load(["+experiment=grpo", "rollout.kv_cache_gib=0.1"]), tmp_path / "run"
    run.mkdir()
    with pytest.raises(TaudojoError, match=r"need about 6\.3 GB, 3\.0 GB are free"):
        check_resources(config, str(model), run)
    with (run / "checkpoint").open("wb") as file:
        file.truncate(3_500_000_000)
    check_resources(config, str(model), run)
