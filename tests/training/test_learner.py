"""Every backend on one rank: its numbers are those of plain Hugging Face, and they repeat to the bit."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from envs.errors import TaudojoError
from rollouts.engines.vllm import _adapter_config
from training.config import AlgorithmSection
from training.learner import deepspeed, fsdp
from training.learner.base import LearnerConfig, LoRAConfig, LossInputs, LossOutputs, Sample
from training.learner.engine import LearnerEngine, single_process
from training.learner.group import backend
from training.loss import PolicyLossConfig, policy_loss, sft_loss

Make = Callable[..., LearnerEngine]

BACKENDS: dict[str, dict[str, Any]] = {
    "fsdp": {"backend": "fsdp"},
    "fsdp_offload": {"backend": "fsdp", "offload_parameters": True},
    "zero2": {"backend": "deepspeed", "zero_stage": 2},
    "zero3": {"backend": "deepspeed", "zero_stage": 3},
    "zero3_offload": {"backend": "deepspeed", "zero_stage": 3, "offload_parameters": True},
}
LORA = LoRAConfig(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))


def learner_of(model: Path, **fields: Any) -> LearnerEngine:
    """In float32 unless said otherwise."""
    config = LearnerConfig(str(model), **{"dtype": "float32"} | fields)
    return backend(config)(config)


@pytest.fixture(params=["fsdp", "zero2", "zero3"])
def make(request: pytest.FixtureRequest, tiny_llama: Path) -> Iterator[Make]:
    """Learners of one backend. `model` is the tiny one unless given; what learners set for the process is put back."""
    single_process()
    before = torch.are_deterministic_algorithms_enabled()
    yield lambda model=tiny_llama, **fields: learner_of(model, **BACKENDS[request.param] | fields)
    torch.use_deterministic_algorithms(before)


fsdp_only = pytest.mark.parametrize("make", ["fsdp"], indirect=True)


@pytest.fixture
def plain_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient descent in place of AdamW: a step of rate 1 moves the weights by the gradient itself."""
    for module in (fsdp, deepspeed):
        monkeypatch.setattr(module, "make_optimizer", lambda config, parameters: torch.optim.SGD(parameters, lr=1.0))


def random_samples(seed: int = 0, groups: int = 2, members: int = 3, advantages: bool = False) -> list[Sample]:
    """Groups that share a prompt and first turns, as episodes do; masks of several turns."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(groups):
        prompt = rng.integers(0, 512, 40).tolist()
        shared = rng.integers(0, 512, 12).tolist()
        for member in range(members):
            ids = prompt + shared[: 12 - 3 * member] + rng.integers(0, 512, 20 + 5 * member).tolist()
            mask = [at >= 40 and at % 7 != 0 for at in range(len(ids))]
            extra: dict[str, Any] = {}
            if advantages:
                extra = {
                    "advantages": [float(rng.normal())] * len(ids),
                    "sampler_logprobs": rng.normal(-5.0, 1.0, len(ids)).tolist(),
                }
            samples.append(Sample(ids, mask, **extra))
    return samples


def hf_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def hf_logprobs(model: Any, sample: Sample, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of tokens 1, 2, … and the entropy there, one sample at a time."""
    ids = torch.tensor(list(sample.token_ids))[None]
    logits = model(input_ids=ids).logits[0, :-1].float() / temperature
    logp = torch.log_softmax(logits, -1)
    return logp.gather(1, ids[0, 1:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def hf_sft_loss(model: Any, samples: list[Sample]) -> Tensor:
    picked = [hf_logprobs(model, s)[0][torch.tensor(s.loss_mask[1:])] for s in samples]
    return -torch.cat(picked).mean()


def state(learner: LearnerEngine) -> dict[str, Tensor]:
    """Copies of the weights."""
    return {name: tensor.clone() for name, tensor in learner.weights()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- the numbers are Hugging Face's


@pytest.mark.parametrize("prefix_tree", [True, False])
def test_log_probs_equal_hugging_face_s(make: Make, tiny_llama: Path, prefix_tree: bool):
    samples, model = random_samples(), hf_model(tiny_llama)
    ours = make(prefix_tree=prefix_tree).logprobs(samples, temperature=0.7)
    for sample, got in zip(samples, ours, strict=True):
        with torch.no_grad():
            expected, _ = hf_logprobs(model, sample, temperature=0.7)
        assert got[0] == 0.0
        assert got[1:] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"prefix_tree": True},
        {"prefix_tree": False},
        {"prefix_tree": True, "micro_batch_tokens": 64, "logits_chunk": 16},
        {"prefix_tree": True, "gradient_checkpointing": True},
    ],
    ids=lambda settings: ",".join(f"{k}={v}" for k, v in settings.items()),
)
def test_loss_and_gradients_equal_hugging_face_s(make: Make, plain_descent: None, tiny_llama: Path, settings: dict[str, Any]):
    samples, model = random_samples(), hf_model(tiny_llama)
    expected = hf_sft_loss(model, samples)
    expected.backward()
    learner = make(max_grad_norm=1e9, **settings)
    before = state(learner)
    metrics = learner.update(samples, sft_loss, lr=1.0)
    after = state(learner)
    assert metrics["loss"] == pytest.approx(expected.item(), abs=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == before.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(before[name] - after[name], gradient, rtol=0, atol=1e-5, msg=name)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_three_adamw_steps_equal_hugging_face_s(make: Make, tiny_llama: Path):
    samples, model = random_samples(), hf_model(tiny_llama)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    learner = make(weight_decay=0.1)
    for step in range(3):
        loss = hf_sft_loss(model, samples)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert learner.update(samples, sft_loss, 1e-3)["loss"] == pytest.approx(loss.item(), abs=1e-5), step


def test_entropy_is_the_mean_over_loss_tokens(make: Make, tiny_llama: Path):
    samples, model = random_samples(), hf_model(tiny_llama)
    with torch.no_grad():
        entropies = torch.cat([hf_logprobs(model, s, 0.8)[1][torch.tensor(s.loss_mask[1:])] for s in samples])
    metrics = make().update(samples, sft_loss, 1e-5, temperature=0.8)
    assert metrics["entropy"] == pytest.approx(entropies.mean().item(), abs=1e-4)
    assert metrics["loss_tokens"] == len(entropies)


@pytest.mark.parametrize("loss", ["sft", "token-mean", "seq-mean-token-sum-norm"])
def test_tree_micro_batches_and_plain_packing_give_the_same_update(make: Make, plain_descent: None, loss: str):
    samples = random_samples(advantages=True)
    function = sft_loss if loss == "sft" else policy_loss(PolicyLossConfig(tis_cap=2.0, aggregation=loss))
    results = []
    for settings in ({}, {"prefix_tree": False}, {"micro_batch_tokens": 64}, {"prefix_tree": False, "micro_batch_tokens": 64}):
        learner = make(max_grad_norm=1e9, **settings)
        metrics = learner.update(samples, function, 1.0)
        results.append((metrics, state(learner)))
    (first, weights), *others = results
    assert first["unique_tokens"] < first["tokens"] == others[0][0]["unique_tokens"]
    for metrics, other in others:
        for name in metrics.keys() - {"unique_tokens"}:
            assert metrics[name] == pytest.approx(first[name], abs=1e-4, rel=1e-4), name
        for name in weights:
            torch.testing.assert_close(other[name], weights[name], rtol=0, atol=1e-5, msg=name)


@fsdp_only
def test_a_budget_that_holds_no_episode_is_told_once(make: Make, caplog: pytest.LogCaptureFixture):
    samples = random_samples()
    longest = max(len(s.token_ids) for s in samples)
    learner = make(micro_batch_tokens=longest - 1)
    for _ in range(2):
        learner.logprobs(samples)
    (told,) = [message for message in caplog.messages if "micro_batch_tokens" in message]
    assert f"raise it to {2 * longest} or more" in told
    for enough in (longest, None):
        make(micro_batch_tokens=enough).logprobs(samples)
    assert sum("micro_batch_tokens" in message for message in caplog.messages) == 1


@fsdp_only
@pytest.mark.parametrize("name", get_args(AlgorithmSection.model_fields["loss"].annotation))
def test_tree_and_plain_give_equal_gradients_under_every_loss(make: Make, plain_descent: None, name: str):
    samples, rng = random_samples(advantages=True), np.random.default_rng(1)
    tree, plain = make(max_grad_norm=1e9), make(max_grad_norm=1e9, prefix_tree=False)
    own = tree.logprobs(samples)
    samples = [  # of a policy that was another one when it sampled
        replace(s, old_logprobs=(old := rng.normal(o, 0.3)).tolist(), sampler_logprobs=rng.normal(old, 0.1).tolist())
        for s, o in zip(samples, own, strict=True)
    ]
    moved = []
    for learner in (tree, plain):
        torch.manual_seed(0)  # clip_cov draws among its candidates
        before = state(learner)
        learner.update(samples, policy_loss(PolicyLossConfig(name=name)), 1.0)
        after = state(learner)
        moved.append({key: before[key] - after[key] for key in before})
    assert max(float(g.abs().max()) for g in moved[0].values()) > 1e-3
    for key in moved[0]:
        torch.testing.assert_close(moved[1][key], moved[0][key], rtol=1e-4, atol=1e-5, msg=key)


def test_a_sample_without_loss_tokens_changes_nothing(make: Make):
    samples = random_samples()
    silent = Sample([1, 2, 3], [True, False, False])  # the first token has no prediction
    one, other = make(), make()
    assert one.update(samples, sft_loss, 1e-3)["loss"] == pytest.approx(other.update([silent, *samples], sft_loss, 1e-3)["loss"])
    with pytest.raises(ValueError, match="without loss tokens"):
        one.update([silent], sft_loss, 1e-3)


def test_the_gradient_is_clipped_to_its_norm(make: Make, plain_descent: None):
    learner = make(max_grad_norm=0.01)
    before = state(learner)
    metrics = learner.update(random_samples(), sft_loss, lr=1.0)
    after = state(learner)
    assert metrics["grad_norm"] > 0.01  # as it was before
    moved = torch.stack([(after[n] - before[n]).norm() for n in before]).norm().item()
    assert moved == pytest.approx(0.01, rel=1e-3)


# -- repetition


def test_the_same_updates_twice_are_identical(make: Make):
    runs = []
    for _ in range(2):
        learner = make(deterministic=True, seed=3)
        metrics = [learner.update(random_samples(step), sft_loss, 1e-3) for step in range(2)]
        runs.append((metrics, state(learner)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_loaded_checkpoint_goes_on_bit_for_bit(make: Make, tmp_path: Path, lora: LoRAConfig | None):
    unbroken = make(lora=lora)
    for step in range(2):
        unbroken.update(random_samples(step), sft_loss, 1e-3)
    unbroken.save(tmp_path, {"stage": "sft", "step": 2})
    expected = [unbroken.update(random_samples(step), sft_loss, 1e-3) for step in (2, 3)]
    resumed = make(lora=lora, seed=7)
    assert resumed.load(tmp_path) == {"stage": "sft", "step": 2}
    assert [resumed.update(random_samples(step), sft_loss, 1e-3) for step in (2, 3)] == expected
    assert same(state(resumed), state(unbroken))


def test_a_loaded_checkpoint_goes_on_with_the_same_random_numbers(make: Make, tmp_path: Path):
    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))

    learner = make(seed=5)
    draw()
    learner.save(tmp_path, {})
    expected = [draw() for _ in range(3)]
    other = make(seed=6)
    other.load(tmp_path)
    assert [draw() for _ in range(3)] == expected


def test_saving_between_updates_changes_nothing(make: Make, tmp_path: Path):
    quiet, saving = make(), make()
    saving.logprobs(random_samples(9))
    for step in range(3):
        assert saving.update(random_samples(step), sft_loss, 1e-3) == quiet.update(random_samples(step), sft_loss, 1e-3)
        (tmp_path / str(step)).mkdir()
        saving.save(tmp_path / str(step), {})
        saving.logprobs(random_samples(9))
    assert same(state(quiet), state(saving))


def test_a_fresh_optimizer_forgets_its_moments(make: Make, tiny_llama: Path, tmp_path: Path):
    learner = make()
    for step in range(3):
        learner.update(random_samples(step), sft_loss, 1e-3)
    learner.reset_optimizer()
    model = hf_model(tiny_llama)
    model.load_state_dict(state(learner), strict=False)
    model.save_pretrained(tmp_path)
    other = make(tmp_path)
    assert learner.update(random_samples(7), sft_loss, 1e-3) == other.update(random_samples(7), sft_loss, 1e-3)
    assert same(state(learner), state(other))


def test_without_its_momentum_a_step_keeps_the_scale_of_the_gradients_before(make: Make):
    learner = make()
    learner.update(random_samples(), sft_loss, 1e-3)
    moments = [dict(s) for s in learner.optimizer.state.values()]
    second = [m["exp_avg_sq"].clone() for m in moments]
    learner.forget_momentum()
    assert moments and all(not m["exp_avg"].any() for m in moments)
    assert all(m["exp_avg_sq"].any() and torch.equal(m["exp_avg_sq"], before) for m, before in zip(moments, second, strict=True))


# -- weights


def test_weights_have_hugging_face_s_names_and_a_tied_head_comes_once(make: Make, tiny_llama: Path):
    model = hf_model(tiny_llama)
    weights = dict(make().weights())
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert "model.embed_tokens.weight" in weights
    assert "lm_head.weight" not in weights
    for name, parameter in model.named_parameters():
        assert torch.equal(weights[name], parameter), name


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_ranks_but_the_first_help_to_gather_the_weights_and_hold_none(
    make: Make, monkeypatch: pytest.MonkeyPatch, lora: LoRAConfig | None
):
    learner, gathered = make(lora=lora), []
    gather = learner._gather
    monkeypatch.setattr(learner, "_gather", lambda parameters: gathered.append(len(parameters)) or gather(parameters))
    names = [name for name, _ in learner.weights()]
    by_the_first = gathered.copy()
    gathered.clear()
    learner.rank = 1
    assert list(learner.weights()) == []
    assert gathered == by_the_first
    assert len(gathered) == len(names) > 10


def test_weights_travel_in_the_compute_type_over_float32_masters(make: Make):
    learner = make(dtype="bfloat16")
    learner.update(random_samples(), sft_loss, 1e-4)
    assert {tensor.dtype for _, tensor in learner.weights()} == {torch.bfloat16}
    masters = [p for group in learner.optimizer.param_groups for p in group["params"]] or list(learner.optimizer.state)
    assert {tensor.dtype for tensor in masters} == {torch.float32}


@pytest.fixture
def untied(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny model with a head of its own."""
    model = hf_model(tiny_llama)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(copy.deepcopy(model.lm_head.weight.detach()) + 1.0)
    model.save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def test_an_untied_head_is_published(make: Make, untied: Path):
    weights = dict(make(untied).weights())
    assert torch.equal(weights["lm_head.weight"], hf_model(untied).lm_head.weight)


def test_the_reference_is_the_policy_as_it_was_when_it_was_kept(make: Make):
    learner, samples = make(), random_samples()
    at_first = learner.logprobs(samples)
    learner.keep_reference()
    learner.update(samples, sft_loss, 1e-2)
    trained = learner.logprobs(samples)
    assert trained != at_first
    with learner.reference():
        assert learner.logprobs(samples) == at_first
    assert learner.logprobs(samples) == trained
    control = make()
    control.update(samples, sft_loss, 1e-2)
    assert learner.update(samples, sft_loss, 1e-2) == control.update(samples, sft_loss, 1e-2)


# -- failures


def test_a_gradient_that_is_not_finite_stops_the_step(make: Make):
    def broken(inputs: LossInputs) -> LossOutputs:
        return LossOutputs(inputs.logprobs_BT.sum() * float("nan"))

    learner, samples = make(), random_samples()
    before = state(learner)
    with pytest.raises(FloatingPointError, match=r"gradient norm is (nan|inf); the step was not taken"):
        learner.update(samples, broken, 1e-3)
    assert same(state(learner), before)
    assert learner.update(samples, sft_loss, 1e-3) == make().update(samples, sft_loss, 1e-3)


def test_a_checkpoint_that_cannot_be_written_is_an_os_error(make: Make, tmp_path: Path):
    (tmp_path / "learner").write_text("a file where a folder must be")
    with pytest.raises(OSError):
        make().save(tmp_path, {})


@pytest.mark.parametrize("make", ["zero2", "zero3"], indirect=True)
def test_a_full_disk_is_an_os_error(make: Make, tmp_path: Path):
    learner = make()
    learner.save(tmp_path, {})
    shards = list((tmp_path / "learner").rglob("*_optim_states.pt"))
    for file in shards:
        file.unlink()
        file.symlink_to("/dev/full")
    with pytest.raises(OSError, match="rank 0: "):
        learner.save(tmp_path, {})


@fsdp_only
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"backend": "deepspeed", "zero_stage": 2},
            r"learner\.backend=fsdp \(now deepspeed\), learner\.zero_stage=None \(now 2\)",
        ),
        ({"lora": LORA}, r"learner\.lora=None \(now .*'rank': 4"),
    ],
)
def test_a_checkpoint_of_another_kind_is_one_sentence(make: Make, tmp_path: Path, other: dict[str, Any], message: str):
    make().save(tmp_path, {})
    with pytest.raises(TaudojoError, match=rf"was written with {message}.*; use the settings"):
        make(**other).load(tmp_path)


# -- backends


@pytest.mark.parametrize("settings", [{}, {"prefix_tree": False}, {"lora": LORA}], ids=["tree", "packed", "lora"])
def test_every_backend_has_the_same_losses_and_weights(tiny_llama: Path, settings: dict[str, Any]):
    single_process()
    runs = {}
    for name, fields in BACKENDS.items():
        learner = learner_of(tiny_llama, micro_batch_tokens=100, **fields | settings)
        runs[name] = ([learner.update(random_samples(step), sft_loss, 1e-3)["loss"] for step in range(4)], state(learner))
    losses, weights = runs["fsdp"]
    for name, (other, tensors) in runs.items():
        assert other == pytest.approx(losses, abs=1e-5), name
        assert tensors.keys() == weights.keys()
        for key in weights:
            torch.testing.assert_close(tensors[key], weights[key], rtol=0, atol=1e-4, msg=f"{name} {key}")


@fsdp_only
@pytest.mark.parametrize("offloaded", [False, True])
def test_on_one_rank_only_offloaded_layers_are_let_go_after_their_forward_pass(
    make: Make, monkeypatch: pytest.MonkeyPatch, offloaded: bool
):
    devices: list[Any] = []
    load = fsdp.load_model
    monkeypatch.setattr(fsdp, "load_model", lambda config, **given: devices.append(given["device"]) or load(config, **given))
    learner = make(offload_parameters=offloaded)
    learner._predict(random_samples(), 1.0)
    gathered = [not isinstance(p, DTensor) for layer in learner.policy.model.base_model.layers for p in layer.parameters()]
    assert set(gathered) == {not offloaded}
    assert devices == ["cpu" if offloaded else None]  # None: the learner's own, which offloading exists to spare


# -- LoRA


def adapter_folder(learner: LearnerEngine, folder: Path) -> Path:
    assert learner.adapter is not None
    folder.mkdir()
    learner.adapter.write({name: tensor.contiguous() for name, tensor in learner.adapter_weights()}, folder)
    return folder


def test_an_adapter_begins_as_the_base_model_and_is_all_that_trains(make: Make):
    learner, samples = make(lora=LORA), random_samples()
    before, at_first = state(learner), learner.logprobs(samples)
    assert at_first == make().logprobs(samples)
    learner.keep_reference()
    for _ in range(3):
        learner.update(samples, sft_loss, 1e-2)
    moved = {name for name, tensor in state(learner).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if any(f".{target}." in name for target in LORA.targets)}
    with learner.reference():
        assert learner.logprobs(samples) == at_first
    assert learner.logprobs(samples) != at_first
    control = make(lora=LORA)
    for _ in range(3):
        control.update(samples, sft_loss, 1e-2)
    assert learner.update(samples, sft_loss, 1e-2) == control.update(samples, sft_loss, 1e-2)


def test_peft_loads_the_adapter_and_merges_it_as_we_do(make: Make, tiny_llama: Path, tmp_path: Path):
    from peft import PeftModel

    learner, samples = make(lora=LORA), random_samples()
    for step in range(3):
        learner.update(random_samples(step), sft_loss, 1e-2)
    loaded = PeftModel.from_pretrained(hf_model(tiny_llama), adapter_folder(learner, tmp_path / "adapter"))
    for sample, got in zip(samples, learner.logprobs(samples), strict=True):
        with torch.no_grad():
            assert got[1:] == pytest.approx(hf_logprobs(loaded, sample)[0].tolist(), abs=1e-4)
    theirs, ours = dict(loaded.merge_and_unload().named_parameters()), state(learner)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name].detach(), rtol=0, atol=1e-6, msg=name)


def test_a_module_to_save_is_trained_whole_and_travels_with_the_adapter(make: Make, untied: Path, tmp_path: Path):
    from peft import PeftModel

    learner = make(untied, lora=replace(LORA, modules_to_save=("lm_head",)))
    before = state(learner)
    learner.update(random_samples(), sft_loss, 1e-2)
    after = state(learner)
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    assert after.keys() == dict(hf_model(untied).named_parameters()).keys()
    loaded = PeftModel.from_pretrained(hf_model(untied), adapter_folder(learner, tmp_path / "adapter")).merge_and_unload()
    torch.testing.assert_close(loaded.lm_head.weight.detach(), after["lm_head.weight"], rtol=0, atol=0)
    with learner.reference():
        sample = random_samples()[0]
        with torch.no_grad():
            expected = hf_logprobs(hf_model(untied), sample)[0]
        assert learner.logprobs([sample])[0][1:] == pytest.approx(expected.tolist(), abs=1e-5)


def test_dropout_is_for_updates_only(make: Make):
    learner, samples = make(lora=replace(LORA, dropout=0.5)), random_samples()
    still = make(lora=LORA)
    for other in (learner, still):
        other.update(samples, sft_loss, 1e-2)
    assert learner.logprobs(samples) == learner.logprobs(samples)
    first, again = (learner.update(samples, sft_loss, 0.0)["loss"] for _ in range(2))
    assert first != again


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_adapter_trains_over_weights_in_the_compute_type(make: Make, dtype: str):
    learner, samples = make(lora=LORA, dtype=dtype, gradient_checkpointing=True), random_samples()
    losses = [learner.update(samples, sft_loss, 1e-2)["loss"] for _ in range(5)]
    assert losses[-1] < losses[0] - 0.05
    assert {str(tensor.dtype) for _, tensor in learner.weights()} == {f"torch.{dtype}"}
    assert {tensor.dtype for _, tensor in learner.adapter_weights()} == {torch.float32}


def test_engines_are_given_the_adapter_alone_where_that_is_asked_for(make: Make, tiny_llama: Path, tmp_path: Path):
    learner = make(lora=replace(LORA, sync="adapter"), dtype="bfloat16")
    tensors, metadata = learner.published()
    given = {name: tensor.contiguous() for name, tensor in tensors}
    assert given.keys() == {name for name, _ in learner.adapter_weights()}
    assert {tensor.dtype for tensor in given.values()} == {torch.bfloat16}
    save_file(given, tmp_path / "adapter.safetensors", metadata)
    described = json.loads(_adapter_config(str(tmp_path / "adapter.safetensors")) or "")
    assert (described["r"], described["lora_alpha"], described["target_modules"]) == (4, 8, list(LORA.targets))

    tensors, metadata = make(lora=LORA).published()
    whole = {name: tensor.contiguous() for name, tensor in tensors}
    assert metadata is None and whole.keys() == {name for name, _ in hf_model(tiny_llama).named_parameters()}
    save_file(whole, tmp_path / "weights.safetensors", metadata)
    assert _adapter_config(str(tmp_path / "weights.safetensors")) is None


@fsdp_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("q_prj",)}, "targets: q_prj is no linear layer inside this model; choose among down_proj, gate_proj"),
        ({"targets": ("lm_head",)}, "targets: lm_head is no linear layer inside"),
        ({"targets": ("embed_tokens",)}, "targets: embed_tokens is no linear layer"),
        ({"modules_to_save": ("head",)}, "modules_to_save: this model has no module head"),
        ({"modules_to_save": ("lm_head",)}, "modules_to_save: lm_head is tied"),
    ],
)
def test_a_wrong_name_is_one_sentence(make: Make, change: dict[str, Any], message: str):
    with pytest.raises(TaudojoError, match=message):
        make(lora=replace(LORA, **change))
