"""The memory plan of a GPU: parameters are counted as Hugging Face's models have them, and the page says what is computed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from envs.errors import TaudojoError
from training.compose import load
from training.config import ShapeSection
from training.memory import (
    adapter_parameters,
    cache_tokens,
    engine_bytes,
    learner_bytes,
    main,
    parameters,
    report,
    shape_of,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
SHAPED = ("qwen3_8b", "qwen3_32b", "gpt_oss_20b", "gpt_oss_120b", "smollm2_135m")
TINY = ShapeSection(
    num_hidden_layers=2,
    hidden_size=8,
    intermediate_size=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=100,
)


def test_parameters_by_hand():
    # A layer: q and o 8×16, k and v 8×8, three of 8×16. Outside: two embeddings of 100×8.
    count = parameters(TINY)
    assert (count.linear, count.experts, count.rest) == (2 * (2 * 128 + 2 * 64 + 3 * 128), 0, 1600)
    assert adapter_parameters(TINY, 3, ["q_proj", "v_proj"]) == 2 * 3 * ((8 + 16) + (8 + 8))


@pytest.mark.parametrize("name", SHAPED)
def test_parameters_are_those_of_hugging_face_s_model(name: str):
    import torch
    from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, Qwen3Config

    kind = {"q": Qwen3Config, "g": GptOssConfig, "s": LlamaConfig}[name[0]]
    shape = shape_of(load([f"model={name}"]))
    fields = {key: value for key, value in shape.model_dump().items() if value and key != "experts_mxfp4"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(kind(**fields))
    assert parameters(shape).total == pytest.approx(sum(p.numel() for p in model.parameters()), rel=1e-3)


def plan(*overrides: str) -> dict[str, float]:
    config = load(["+experiment=grpo", "model=qwen3_8b", "cluster=gpu", *overrides])
    return learner_bytes(config, shape_of(config))


def test_all_weights_an_adapter_and_4_bits():
    count = parameters(shape_of(load(["model=qwen3_8b"])))
    assert plan()["weights, gradients, optimizer"] == 16 * count.total
    assert plan("cluster.learner_world_size=4")["weights, gradients, optimizer"] == 4 * count.total
    adapter, packed = (plan("learner.lora.rank=16", *q)["frozen weights"] for q in ([], ["learner.lora.quantize=4bit"]))
    assert adapter == 2 * count.total
    assert packed == pytest.approx(0.516 * count.linear + 2 * count.rest, rel=1e-3)


def test_what_is_offloaded_leaves_the_copies_of_two_layers():
    count = parameters(shape_of(load(["model=qwen3_8b"])))
    told = plan("learner.offload_parameters=true")
    assert set(told) == {"copies", "activations", "logits"}
    assert told["copies"] == 2 * (count.rest + 2 * count.largest_gathered) < plan()["copies"] / 3


def test_checkpointing_keeps_one_layer():
    assert plan("learner.gradient_checkpointing=true")["activations"] < plan()["activations"] / 12


def test_activations_are_near_what_was_measured():
    config = load(["+experiment=grpo", "learner.micro_batch_tokens=4096"])
    assert learner_bytes(config, shape_of(config))["activations"] == pytest.approx(60 * 4096 * 30 * 576, rel=0.17)


def test_the_plan_counts_the_largest_micro_batch_that_the_learner_may_make():
    def tokens(*overrides: str) -> int:
        return load(["model.max_model_len=3000", *overrides]).most_micro_batch_tokens

    assert tokens() == 6000  # two of the longest episodes
    assert tokens("model.max_model_len=1000") == 4096
    assert tokens("learner.micro_batch_tokens=5000") == 5000
    assert tokens("learner.micro_batch_tokens=1024") == 3000  # an episode that stands alone


def test_the_cache_holds_what_the_weights_leave():
    config = load(["model=qwen3_8b", "rollout.gpu_memory_utilization=0.5"])
    shape = shape_of(config)
    each = 2 * 2 * 36 * 8 * 128
    assert engine_bytes(config, shape)["a token in the cache"] == each
    left = 40 * 2**30 - 2 * parameters(shape).total - 4 * 2**30
    assert cache_tokens(config, shape, 80.0) == left // each
    assert cache_tokens(config, shape, 16.0) == 0


def test_a_model_without_a_shape_is_one_sentence(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(TaudojoError, match=r"qwen3_0_6b\.yaml has no shape"):
        report(load(["model=qwen3_0_6b"]))
    assert main(["model=qwen3_0_6b"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_prints_the_plan(capsys: pytest.CaptureFixture[str]):
    assert main(["model=qwen3_32b", "learner.lora.rank=16", "cluster.learner_world_size=2"]) == 0
    out = capsys.readouterr().out
    assert "32.8 B parameters" in out and "each of 2" in out


def rows() -> list[list[str]]:
    """Cells of the recipes' table."""
    section = PAGE.split("## Recipes for larger models")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if re.match(r"\| `", line)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_recipe_on_the_page_says_what_is_computed(row: list[str]):
    section = PAGE.split("## Recipes for larger models")[1]
    name = row[0].split("`")[1]
    (command,) = [
        line
        for line in section.splitlines()
        if line.startswith("python -m training.main") and line.endswith(f"# {row[0]}".replace("`", ""))
    ]
    config = load(shlex.split(command.split("#")[0].split("training.main ")[1]))
    assert config.model.name == name
    assert (config.seconds, config.sft.seconds, config.grpo.seconds) == (None, None, None)  # a laptop's would end it in SFT
    assert config.most_micro_batch_tokens == config.learner.micro_batch_tokens == config.model.max_model_len
    told = report(config)
    cluster = config.cluster
    assert [float(x) for x in re.findall(r"[\d.]+", row[2])] == [pytest.approx(told["learner GPU"], abs=0.06)]
    assert float(row[3]) == pytest.approx(told["engine"]["weights"], abs=0.06)
    assert int(row[4].replace(",", "")) == pytest.approx(told["cache tokens"], rel=0.01)
    gpus = cluster.learner_world_size * cluster.gpus_per_learner + cluster.rollout_workers * cluster.gpus_per_rollout_worker
    assert int(row[1]) == gpus
    if cluster.gpus_per_learner < 1:
        assert told["learner GPU"] + 74.5 * config.rollout.gpu_memory_utilization < 74.5
    else:
        assert told["learner GPU"] < 74.5 * 0.9
