"""Learner ranks as Ray actors: two ranks compute what one does, and a rank that is lost is an error."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.torch import load, load_file

from envs.errors import TaudojoError
from training.learner import group as group_module
from training.learner.base import LearnerConfig, LoRAConfig, Sample
from training.learner.group import LearnerGroup, LearnerWorker
from training.loss import PolicyLossConfig

Start = Callable[..., LearnerGroup]


LORA = LoRAConfig(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))
#: Backends hold the same numbers on one rank (test_learner.py); here two ranks of each are held against one.
KINDS: dict[str, dict[str, Any]] = {
    "fsdp": {"backend": "fsdp"},
    "zero2": {"backend": "deepspeed", "zero_stage": 2},
    "zero3": {"backend": "deepspeed", "zero_stage": 3},
    "fsdp_lora": {"backend": "fsdp", "lora": LORA},
    "fsdp_4bit": {"backend": "fsdp", "lora": replace(LORA, quantize="4bit")},
    "zero3_lora": {"backend": "deepspeed", "zero_stage": 3, "lora": LORA},
}
#: Each backend, each stage, and an adapter on both, once with two ranks.
PAIRED = ("fsdp", "zero2", "fsdp_lora", "fsdp_4bit", "zero3_lora")


def kinds(*quick: str, of: Iterable[str] = KINDS) -> list[Any]:
    """Three processes a kind take half a minute to start: only the `quick` ones are in every test run."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in of]


def start_group(model: Path, world_size: int, port: int | None = None, **fields: Any) -> LearnerGroup:
    config = LearnerConfig(str(model), dtype="float32", threads=1, **fields)
    return LearnerGroup.start(config, world_size=world_size, port=port)


@dataclass(frozen=True)
class Rewindable:
    """A group, and the checkpoint of its beginning."""

    group: LearnerGroup
    beginning: Path

    def rewound(self) -> LearnerGroup:
        self.group.load(self.beginning)
        self.group.reset_optimizer()
        return self.group


def rewindable(model: Path, folder: Path, world_size: int, **fields: Any) -> Rewindable:
    made = Rewindable(start_group(model, world_size, **fields), folder)
    made.group.save(folder, {})
    return made


@pytest.fixture(scope="module", params=kinds("fsdp", of=PAIRED))
def pair(
    request: pytest.FixtureRequest, cluster: None, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Rewindable, Rewindable]]:
    """One rank and two, whose micro-batches are smaller and not equally many."""
    kind = KINDS[request.param]
    one = rewindable(tiny_llama, tmp_path_factory.mktemp("one"), 1, **kind)
    two = rewindable(tiny_llama, tmp_path_factory.mktemp("two"), 2, micro_batch_tokens=160, **kind)
    yield one, two
    one.group.close()
    two.group.close()


@pytest.fixture
def start(cluster: None, tiny_llama: Path) -> Iterator[Start]:
    """Starts a group of a test's own, closed after it."""
    groups: list[LearnerGroup] = []

    def start(world_size: int, **settings: Any) -> LearnerGroup:
        groups.append(start_group(tiny_llama, world_size, **settings))
        return groups[-1]

    yield start
    for group in groups:
        group.close()


@pytest.fixture
def fresh(pair: tuple[Rewindable, Rewindable]) -> tuple[LearnerGroup, LearnerGroup]:
    """Both groups at the same weights, with empty optimizers."""
    one, two = pair
    return one.rewound(), two.rewound()


def samples(seed: int, number: int = 7) -> list[Sample]:
    """Of different lengths, half of them with a shared prompt, ready for any loss."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, 512, 30).tolist()
    made = []
    for n in range(number):
        ids = (prompt if n % 2 else []) + rng.integers(0, 512, 20 + 9 * n).tolist()
        made.append(
            Sample(
                ids,
                [at % 3 != 0 and at > 10 for at in range(len(ids))],
                advantages=[float(rng.normal())] * len(ids),
                sampler_logprobs=rng.normal(-6.0, 0.5, len(ids)).tolist(),
            )
        )
    return made


def published(group: LearnerGroup) -> dict[str, Any]:
    return load(ray.get(group.publish()).tobytes())


def equal_runs(
    groups: tuple[LearnerGroup, LearnerGroup], loss: PolicyLossConfig | None, prepare: Any = lambda batch: batch
) -> None:
    """Three updates: every metric of every step, then the weights."""
    for step in range(3):
        batch = prepare(samples(step))
        alone, together = (group.update(batch, loss, lr=1e-3) for group in groups)
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5, abs=1e-4), f"step {step}"
        assert together.keys() == alone.keys()
        for name in alone.keys() - {"seconds", "unique_tokens"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-4), f"{name} at step {step}"
    expected, got = (published(group) for group in groups)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        # The mean: where a gradient is all but zero, its sign and with it AdamW's whole first step is a matter of rounding.
        assert (got[name] - tensor).abs().mean().item() < 1e-5, name


def test_two_ranks_give_the_sft_losses_of_one(fresh: tuple[LearnerGroup, LearnerGroup]):
    equal_runs(fresh, None)


def test_two_ranks_give_the_policy_losses_of_one(fresh: tuple[LearnerGroup, LearnerGroup]):
    equal_runs(fresh, PolicyLossConfig())


def test_two_ranks_give_the_losses_of_one_with_a_reference_and_several_updates(fresh: tuple[LearnerGroup, LearnerGroup]):
    one, two = fresh
    for group in fresh:
        group.keep_reference()

    def with_logprobs(batch: list[Sample]) -> list[Sample]:
        old, reference = one.logprobs(batch), one.logprobs(batch, reference=True)
        assert two.logprobs(batch, reference=True)[3] == pytest.approx(reference[3], abs=1e-4)
        return [replace(s, old_logprobs=o, reference_logprobs=r) for s, o, r in zip(batch, old, reference, strict=True)]

    equal_runs(fresh, PolicyLossConfig(kl_coef=0.1, aggregation="seq-mean-token-sum-norm"), with_logprobs)


def test_two_ranks_compute_each_group_s_trunk_once(fresh: tuple[LearnerGroup, LearnerGroup]):
    system, rng = list(range(8)), np.random.default_rng(0)
    trunks = [system + rng.integers(0, 512, 50).tolist() for _ in range(2)]
    ids = [trunk + rng.integers(0, 512, 20).tolist() for _ in range(4) for trunk in trunks]
    batch = [Sample(tokens, [at >= 58 for at in range(len(tokens))]) for tokens in ids]
    alone, together = (group.update(batch, None, 1e-3) for group in fresh)
    assert together["unique_tokens"] == alone["unique_tokens"] + len(system)
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-4)


def test_log_probs_come_back_in_the_order_of_the_batch(fresh: tuple[LearnerGroup, LearnerGroup]):
    batch = samples(5)
    alone, together = (group.logprobs(batch) for group in fresh)
    assert [len(row) for row in together] == [len(s.token_ids) for s in batch]
    for expected, got in zip(alone, together, strict=True):
        assert got == pytest.approx(expected, abs=1e-4)


def test_a_checkpoint_goes_on_with_another_number_of_ranks(fresh: tuple[LearnerGroup, LearnerGroup], tmp_path: Path):
    for before, after in (fresh, fresh[::-1]):
        folder = tmp_path / str(before.world_size)
        folder.mkdir()
        for step in range(2):
            before.update(samples(step), None, 1e-3)
        before.save(folder, {"stage": "sft", "step": 2})
        written = sorted(folder.rglob("*"))
        assert after.load(folder) == {"stage": "sft", "step": 2}
        assert sorted(folder.rglob("*")) == written
        losses = [[group.update(samples(step), None, 1e-3)["loss"] for step in (2, 3)] for group in (before, after)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_an_exported_folder_is_what_is_published(fresh: tuple[LearnerGroup, LearnerGroup], tmp_path: Path):
    from transformers import AutoModelForCausalLM

    for number, group in enumerate(fresh):
        group.export(tmp_path / str(number))
        weights = published(group)
        stored = load_file(tmp_path / str(number) / "model.safetensors")
        assert stored.keys() == weights.keys()
        assert all((stored[name] == weights[name]).all() for name in weights)
        assert AutoModelForCausalLM.from_pretrained(tmp_path / str(number)).config.tie_word_embeddings


def test_a_rank_without_samples_takes_part(fresh: tuple[LearnerGroup, LearnerGroup]):
    alone, together = (group.update(samples(0, number=1), None, 1e-3) for group in fresh)
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-4)


@pytest.mark.parametrize("pair", kinds(of=["fsdp_lora", "zero3_lora"]), indirect=True, scope="module")
def test_peft_merges_the_exported_adapter_into_the_exported_model(
    fresh: tuple[LearnerGroup, LearnerGroup], tiny_llama: Path, tmp_path: Path
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    group = fresh[1]
    group.update(samples(0), None, 1e-2)
    group.export(tmp_path / "merged")
    group.export_adapter(tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").glob("adapter*")) == ["adapter_config.json", "adapter_model.safetensors"]
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype="float32")
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        assert (theirs[name] - tensor).abs().max().item() < 1e-6, name


@pytest.mark.parametrize("kind", kinds("fsdp", of=["fsdp", "zero3"]))
def test_a_killed_rank_is_an_error_and_not_a_wait(start: Start, kind: str):
    group = start(2, **KINDS[kind])
    group.update(samples(0), None, 1e-3)
    ray.kill(group._workers[1])
    begin = time.monotonic()
    with pytest.raises(TaudojoError, match="a worker died while the run waited for the learner"):
        group.update(samples(1), None, 1e-3)
    assert time.monotonic() - begin < group_module.COLLECTIVE_TIMEOUT_S / 10  # nobody waited for the collective to give up


def test_a_gradient_that_is_not_finite_is_one_sentence(start: Start):
    broken = Sample([1, 2, 3], [False, True, True], advantages=[0.0, float("nan"), 1.0], sampler_logprobs=[0.0, -1.0, -1.0])
    with pytest.raises(TaudojoError, match=r"gradient norm is nan; the step was not taken\. Lower the learning rate"):
        start(1).update([broken], PolicyLossConfig(), 1e-3)


def test_a_rank_that_dies_while_the_others_load_is_an_error_at_once(start: Start, monkeypatch: pytest.MonkeyPatch):
    class SecondDies(LearnerWorker):
        def setup(self, config: LearnerConfig, address: str) -> None:
            if self.rank == 1:
                os._exit(1)
            time.sleep(600)

    monkeypatch.setattr(group_module, "LearnerWorker", SecondDies)
    begin = time.monotonic()
    with pytest.raises(TaudojoError, match="a worker died while the run waited for all learner ranks to load"):
        start(2)
    assert time.monotonic() - begin < 120


@pytest.mark.slow
def test_a_wrong_target_is_one_sentence_from_every_rank(start: Start):
    with pytest.raises(TaudojoError, match=r"learner\.lora\.targets: q_prj is no linear layer") as caught:
        start(2, lora=replace(LORA, targets=("q_prj",)))
    assert "\n" not in str(caught.value)


def test_a_rendezvous_port_in_use_is_one_sentence(start: Start):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TaudojoError, match=rf"port {port} is in use; set cluster\.rendezvous_port"):
            start(1, port=port)
