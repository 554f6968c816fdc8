"""Models of other kinds on the learner: windows and sinks, recurrent layers, 4-bit weights, weights that come from rank 0."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from envs.errors import TaudojoError
from tests.training.test_learner import hf_logprobs, hf_sft_loss, learner_of, random_samples
from training.learner import attention, flex, fsdp
from training.learner.base import LearnerConfig, LoRAConfig
from training.learner.engine import single_process
from training.learner.group import LearnerWorker
from training.learner.loading import apply_liger, attention_for, keep_packing, load_model, receive
from training.loss import sft_loss

QLORA = LoRAConfig(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"), quantize="4bit")
SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
}


def saved(config: Any, folder: Path) -> Path:
    """A model folder with random weights."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def gpt_oss() -> Any:
    from transformers import GptOssConfig

    kinds = ["sliding_attention", "full_attention"]
    return GptOssConfig(
        **SMALL, num_hidden_layers=2, layer_types=kinds, sliding_window=9, num_local_experts=4, num_experts_per_tok=2
    )


def mistral() -> Any:
    from transformers import MistralConfig

    return MistralConfig(**SMALL, num_hidden_layers=2, sliding_window=13)


def gemma2() -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(**SMALL, num_hidden_layers=2, sliding_window=11, query_pre_attn_scalar=16, final_logit_softcapping=None)


def qwen3_next() -> Any:
    from transformers import Qwen3NextConfig

    return Qwen3NextConfig(
        **SMALL,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )


@pytest.fixture
def plain_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsdp, "make_optimizer", lambda config, parameters: torch.optim.SGD(parameters, lr=1.0))


@pytest.mark.parametrize("made", [gpt_oss, mistral, gemma2, qwen3_next], ids=lambda made: made.__name__)
def test_windows_sinks_caps_and_recurrent_layers_give_hugging_face_s_numbers(made: Any, plain_descent: None, tmp_path: Path):
    single_process()
    folder, samples = saved(made(), tmp_path), random_samples()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    learner = learner_of(folder, max_grad_norm=1e9)
    assert learner.alone == (made is qwen3_next)
    for sample, got in zip(samples, learner.logprobs(samples), strict=True):
        with torch.no_grad():
            expected, _ = hf_logprobs(model, sample)
        assert got[1:] == pytest.approx(expected.tolist(), abs=1e-4)
    hf_sft_loss(model, samples).backward()
    before = {name: tensor.clone() for name, tensor in learner.weights()}
    learner.update(samples, sft_loss, lr=1.0)
    after = dict(learner.weights())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(before[name] - after[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_the_attention_follows_device_and_layers():
    from transformers import LlamaConfig, Qwen3Config

    assert attention_for(LlamaConfig(**SMALL), "cpu") == attention.NAME
    assert attention_for(LlamaConfig(**SMALL), "cuda") == flex.NAME
    assert attention_for(Qwen3Config(**SMALL), "cpu") == attention.NAME
    assert attention_for(mistral(), "cpu") == attention_for(gemma2(), "cpu") == flex.NAME
    chunked = LlamaConfig(**SMALL, num_hidden_layers=1)
    chunked.layer_types = ["chunked_attention"]
    with pytest.raises(TaudojoError, match="no attention for layers of the kind chunked_attention"):
        attention_for(chunked, "cpu")
    capped = gemma2()
    capped.final_logit_softcapping = 30.0
    with pytest.raises(TaudojoError, match="without final_logit_softcapping, which gemma2"):
        attention_for(capped, "cuda")


# -- 4 bits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_trains_over_4_bit_weights(tiny_llama: Path, tmp_path: Path, dtype: str):
    single_process()
    samples, learner = random_samples(), learner_of(tiny_llama, lora=QLORA, dtype=dtype, gradient_checkpointing=True)
    linear = learner.policy.model.base_model.layers[0].mlp.gate_proj
    assert type(linear).__name__ == "Linear4bit" and linear.weight.dtype == torch.uint8
    losses = [learner.update(samples, sft_loss, 1e-2)["loss"] for _ in range(5)]
    assert losses[-1] < losses[0] - 0.2

    learner.save(tmp_path, {"step": 5})
    again = learner_of(tiny_llama, lora=QLORA, dtype=dtype)
    assert again.logprobs(samples) != learner.logprobs(samples)
    assert again.load(tmp_path) == {"step": 5}
    assert again.logprobs(samples) == learner.logprobs(samples)
    with pytest.raises(TaudojoError, match="quantize"):
        learner_of(tiny_llama, lora=replace(QLORA, quantize=None), dtype=dtype).load(tmp_path)


def test_4_bit_weights_are_published_as_the_numbers_that_were_trained_over(tiny_llama: Path):
    single_process()
    samples, learner = random_samples(), learner_of(tiny_llama, lora=QLORA)
    learner.update(samples, sft_loss, 1e-2)
    merged = dict(learner.weights())
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert merged.keys() == {name for name, _ in model.named_parameters()}
    far = (merged["model.layers.0.mlp.gate_proj.weight"] - model.model.layers[0].mlp.gate_proj.weight).abs().max()
    assert 0.01 < far < 0.3  # rounded to 4 bits, and not otherwise changed
    model.load_state_dict(merged, strict=False)
    for sample, row in zip(samples, learner.logprobs(samples), strict=True):
        with torch.no_grad():
            assert row[1:] == pytest.approx(hf_logprobs(model, sample)[0].tolist(), abs=1e-4)


def test_the_merged_model_of_4_bit_weights_is_a_plain_one(tiny_llama: Path, tmp_path: Path):
    single_process()
    samples, worker = random_samples(), LearnerWorker(0, 1)
    worker.learner = learner_of(tiny_llama, lora=QLORA)
    worker.update(samples, None, 1e-2)
    worker.export(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert worker.logprobs(samples[:1])[0][1:] == pytest.approx(hf_logprobs(model, samples[0])[0].tolist(), abs=1e-4)


def test_peft_loads_an_adapter_of_4_bit_weights(tiny_llama: Path, tmp_path: Path):
    from peft import PeftModel

    single_process()
    samples, learner = random_samples(), learner_of(tiny_llama, lora=QLORA)
    learner.update(samples, sft_loss, 1e-2)
    assert learner.adapter is not None
    learner.adapter.write({name: tensor.contiguous() for name, tensor in learner.adapter_weights()}, tmp_path)
    config = learner.policy.model.config.quantization_config
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, quantization_config=config)
    keep_packing(base)
    theirs = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        expected = hf_logprobs(theirs, samples[0])[0]
    assert learner.logprobs(samples[:1])[0][1:] == pytest.approx(expected.tolist(), abs=1e-4)


# -- weights from rank 0


def test_what_rank_0_gives_is_the_model_with_its_ties_and_buffers(tiny_llama: Path):
    single_process()
    config = LearnerConfig(str(tiny_llama), dtype="float32")
    model, expected = load_model(config), load_model(config)
    receive(model.model.layers[0], torch.device("cpu"), torch.float32)
    receive(model, torch.device("cpu"), torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(model.lm_head.weight, nn.Parameter)
    for (name, mine), (other, theirs) in zip(model.state_dict().items(), expected.state_dict().items(), strict=True):
        assert name == other and torch.equal(mine, theirs)
    assert torch.equal(model.model.rotary_emb.inv_freq, expected.model.rotary_emb.inv_freq)


def test_a_rank_that_is_given_its_weights_begins_with_none(tiny_llama: Path):
    model = load_model(LearnerConfig(str(tiny_llama), dtype="float32"), whole=False)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    receive(model, torch.device("cpu"), torch.float32)
    assert not any(tensor.is_meta or isinstance(tensor, DTensor) for tensor in [*model.parameters(), *model.buffers()])


# -- Liger


def test_liger_without_a_gpu_is_one_sentence(tiny_llama: Path):
    single_process()
    with pytest.raises(TaudojoError, match=r"learner\.liger=true needs a GPU"):
        learner_of(tiny_llama, liger=True)


def test_liger_that_is_not_installed_is_one_sentence():
    if importlib.util.find_spec("liger_kernel"):
        pytest.skip("it is installed")
    with pytest.raises(TaudojoError, match="pip install liger-kernel"):
        apply_liger(None, "cuda")


# -- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("lora", [None, replace(QLORA, quantize=None), QLORA], ids=["all", "lora", "4bit"])
def test_a_gpu_gives_a_cpu_s_log_probs_and_losses(tiny_llama: Path, lora: LoRAConfig | None):
    single_process("cuda")
    samples, learner = random_samples(), learner_of(tiny_llama, lora=lora, device="cuda")
    merged = {name: tensor.float() for name, tensor in learner.weights()}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model.load_state_dict(merged, strict=False)
    for sample, row in zip(samples, learner.logprobs(samples), strict=True):
        with torch.no_grad():
            assert row[1:] == pytest.approx(hf_logprobs(model, sample)[0].tolist(), abs=2e-2)  # TF32
    losses = [learner.update(samples, sft_loss, 1e-2)["loss"] for _ in range(5)]
    assert losses[-1] < losses[0] - 0.05
