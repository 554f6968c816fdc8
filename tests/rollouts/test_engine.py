"""vLLM with a real model against the learner: same numbers, proven weight sync, repeatable lock-step.

One engine and one learner for all tests (tests/conftest.py), both SmolLM2 in float32. Each test puts the weights that it needs
into the engine itself, so their order does not matter.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from envs.errors import TaudojoError
from rollouts.engines import vllm
from rollouts.engines.base import EngineConfig
from rollouts.engines.vllm import VLLMEngine
from rollouts.gold import gold_trajectories
from rollouts.scheduler import RolloutPool, get
from rollouts.trajectory import EpisodeRequest, Trajectory
from training.learner.base import Sample
from training.sync import WeightSync

LAYER = "model.layers.7.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def gold(world: Any, task_sets: Any) -> list[Sample]:
    """The beginnings of the expert's episodes as training samples; their last tokens are what is learned."""
    played = gold_trajectories(world, task_sets.sft[:4])
    return [Sample(s.token_ids[:256], [n >= 192 for n in range(256)]) for t in played for s in t.segments]


@pytest.fixture
def sync(pool: RolloutPool, learner: Any, gold: list[Sample]) -> WeightSync:
    """A sync whose engine has the learner's weights."""
    sync = WeightSync(learner, pool, [list(s.token_ids) for s in gold[:2]], "float32")
    sync.run()
    return sync


def test_a_compiled_engine_without_a_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vllm, "set_environment", lambda config: None)
    monkeypatch.setattr(vllm, "_cuda", lambda: False)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(TaudojoError, match=r"rollout\.compile=true needs a C\+\+ compiler"):
        VLLMEngine(EngineConfig("/m", compile=True))


def stored_weights(folder: Path) -> Any:
    """The model folder's own weights, as `learner.publish` would give them."""
    return ray.put(np.frombuffer((folder / "model.safetensors").read_bytes(), np.uint8))


def changed_weights(learner: Any, name: str, factor: float) -> Any:
    from safetensors.torch import load, save

    weights = load(ray.get(learner.publish()).tobytes())
    weights[name] = weights[name] * factor
    return ray.put(np.frombuffer(save(weights), np.uint8))


def load_stale_head(pool: RolloutPool, weights: Any, version: int) -> None:
    """As a sync that forgets the packed copy of a tied head."""
    get([w.load_weights.remote(weights, version, skip=("lm_head",)) for w in pool._workers], 120, "weights without the head")


def requests(task_sets: Any, number: int, temperature: float) -> list[EpisodeRequest]:
    tasks: Sequence[Any] = task_sets.heldout[:number]
    return [EpisodeRequest(t, seed=100 + n, stage="test", group=n, temperature=temperature) for n, t in enumerate(tasks)]


def longest_answer(pool: RolloutPool) -> int:
    """Tokens of the longest answer that an engine is writing."""
    written = [w.__ray_call__.remote(lambda worker: list(worker._engine._written().values())) for w in pool._workers]
    return max((n for answers in get(written, 60, "the answers' lengths") for n in answers), default=0)


def sampled(trajectory: Trajectory) -> np.ndarray:
    """Sampled tokens and the log-probs that they were sampled with, `[tokens, 2]`."""
    rows = [
        (token, logprob)
        for s in trajectory.segments
        for token, logprob, masked in zip(s.token_ids, s.logprobs, s.loss_mask, strict=True)
        if masked
    ]
    return np.array(rows)


def test_log_probs_equal_hugging_face_s(pool: RolloutPool, gold: list[Sample], smollm_path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    pool.load_weights(stored_weights(smollm_path), version=1)
    prompts = [list(s.token_ids) for s in gold[:2]]
    (scores,) = pool.score(prompts)
    model = AutoModelForCausalLM.from_pretrained(smollm_path, dtype=torch.float32)
    for prompt, row in zip(prompts, scores, strict=True):
        ids = torch.tensor(prompt)[None]
        with torch.no_grad():
            logp = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
        expected = logp.gather(1, ids[0, 1:, None])[:, 0].numpy()
        assert row[0] == 0.0
        assert np.abs(np.array(row[1:]) - expected).max() < 1e-3


def test_one_pass_norms_round_as_hugging_face_s():
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from rollouts.engines.vllm_worker import fused_add_rms_norm, rms_norm

    draw = torch.Generator().manual_seed(0)
    for dtype, close in ((torch.bfloat16, 2**-6), (torch.float32, 2**-20)):
        x, residual = (torch.randn(300, 576, generator=draw).to(dtype) for _ in range(2))
        norm = LlamaRMSNorm(576, eps=1e-5).to(dtype)
        torch.nn.init.uniform_(norm.weight, 0.1, 2.0, generator=draw)
        with torch.no_grad():
            expected, of_sum = norm(x), norm(x + residual)
        torch.testing.assert_close(rms_norm.impl_fn(x, norm.weight.data, 1e-5), expected, rtol=close, atol=0)
        total = x + residual
        got, kept = fused_add_rms_norm.impl_fn(x, residual, norm.weight.data, 1e-5)
        torch.testing.assert_close(got, of_sum, rtol=close, atol=0)
        assert torch.equal(kept, total)


@pytest.mark.slow
def test_an_update_is_a_gap_until_it_is_synced(sync: WeightSync, learner: Any, gold: list[Sample]):
    before = sync.probe()
    assert before[0] < 1e-3
    learner.update(gold[:2], None, lr=1e-4)
    with pytest.raises(TaudojoError, match="does not have the learner's weights"):
        sync.probe()
    report = sync.run()
    assert report.mean_gap < 1e-3
    assert report.max_gap < 1e-2


@pytest.mark.slow
def test_an_adapter_reaches_the_engine_in_the_merged_weights_and_in_the_exported_folder(
    pool: RolloutPool, config: Any, smollm_path: Path, gold: list[Sample], tmp_path: Path
):
    from training.config import LearnerSection, LoRASection
    from training.learner.group import LearnerGroup

    section = LearnerSection(backend="deepspeed", zero_stage=3, lora=LoRASection(rank=8, sync="merged"))
    settings = config.model_copy(update={"learner": section}).learner_config(str(smollm_path), os.cpu_count())
    learner = LearnerGroup.start(settings)
    try:
        sync = WeightSync(learner, pool, [list(s.token_ids) for s in gold[:2]], "float32")
        assert sync.run().mean_gap < 1e-3
        learner.update(gold[:2], None, lr=1e-2)
        with pytest.raises(TaudojoError, match="does not have the learner's weights"):
            sync.probe()
        assert sync.run().mean_gap < 1e-3
        learner.export(tmp_path)
        pool.load_weights(stored_weights(smollm_path), version=40)
        with pytest.raises(TaudojoError, match="does not have the learner's weights"):
            sync.probe()
        pool.load_weights(stored_weights(tmp_path), version=41)
        assert sync.probe()[0] < 1e-3
    finally:
        learner.close()


@pytest.mark.slow
def test_the_adapter_alone_travels_and_is_proven(
    cluster: None, config: Any, world_config: Any, smollm_path: Path, gold: list[Sample], task_sets: Any
):
    from training.config import LearnerSection, LoRASection
    from training.learner.group import LearnerGroup

    own = config.model_copy(update={"learner": LearnerSection(lora=LoRASection(rank=6, sync="adapter"))})
    short = replace(world_config, limits=replace(world_config.limits, max_steps=3, max_turn_tokens=32))
    learner = LearnerGroup.start(own.learner_config(str(smollm_path), os.cpu_count()))
    pool = RolloutPool.start(short, own.engine(str(smollm_path)), workers=1, max_concurrent=8)
    try:
        sync = WeightSync(learner, pool, [list(s.token_ids) for s in gold[:2]], "float32")
        assert sync.probe()[0] < 1e-3  # the base model
        assert sync.run().mean_gap < 1e-3
        learner.update(gold[:2], None, lr=1e-2)
        with pytest.raises(TaudojoError, match="does not have the learner's weights"):
            sync.probe()
        report = sync.run()
        assert report.mean_gap < 1e-3
        # 30 layers: q and o 576×576, k and v 576×192, gate, up and down 576×1536, each with rank × (in + out) float32 numbers.
        parameters = 30 * 6 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
        assert report.mib == pytest.approx(parameters * 4 / 2**20, rel=0.02)

        request = requests(task_sets, 1, temperature=0.0)
        cold, warm = (pool.play(request)[0].cached_tokens for _ in range(2))
        assert warm > cold
        sync.run()
        assert pool.play(request)[0].cached_tokens == cold  # nothing of the adapter before

        (trajectory,) = pool.play(requests(task_sets, 1, temperature=1.0))
        segment = trajectory.segments[0]
        own = np.array(segment.loss_mask, bool)
        expected = np.array(learner.logprobs([Sample(segment.token_ids, segment.loss_mask)])[0])[own]
        assert np.abs(sampled(trajectory)[:, 1] - expected).max() < 1e-3
        assert {v for _, _, v in segment.versions} == {sync.version}

        with pytest.raises(TaudojoError, match="whole weights, and this engine was started for adapters"):
            pool.load_weights(stored_weights(smollm_path), version=90)
    finally:
        learner.close()
        pool.close()


@pytest.mark.slow
def test_one_corrupted_tensor_is_stopped_by_the_probe(sync: WeightSync, pool: RolloutPool, learner: Any):
    pool.load_weights(changed_weights(learner, LAYER, 1.0), version=50)
    sync.probe()
    pool.load_weights(changed_weights(learner, LAYER, 1.5), version=51)
    with pytest.raises(TaudojoError, match="does not have the learner's weights"):
        sync.probe()


@pytest.mark.slow
def test_a_stale_head_is_stopped_by_the_probe(sync: WeightSync, pool: RolloutPool, learner: Any, gold: list[Sample]):
    import torch

    if torch.cuda.is_available():
        pytest.skip("only the CPU backend keeps a packed copy of the head")
    learner.update(gold[:2], None, lr=1e-3)
    weights = learner.publish()
    load_stale_head(pool, weights, version=60)
    with pytest.raises(TaudojoError, match="does not have the learner's weights"):
        sync.probe()
    pool.load_weights(weights, version=61)
    sync.probe()


@pytest.mark.slow
def test_cached_prefixes_are_forgotten_with_the_old_weights(sync: WeightSync, pool: RolloutPool, learner: Any, task_sets: Any):
    request = requests(task_sets, 1, temperature=0.0)
    weights = learner.publish()

    def cached() -> int:
        (trajectory,) = pool.play(request)
        return trajectory.cached_tokens

    pool.load_weights(weights, version=70)
    cold, warm = cached(), cached()
    assert warm > cold
    pool.load_weights(weights, version=71)
    assert cached() == cold


@pytest.mark.slow
def test_lock_step_episodes_repeat_to_the_bit(sync: WeightSync, pool: RolloutPool, learner: Any, task_sets: Any):
    lockstep = RolloutPool(pool._workers, max_concurrent=8, lockstep=True)
    weights = learner.publish()
    runs = []
    for _ in range(2):
        pool.load_weights(weights, version=80)  # both begin with an empty cache
        runs.append(lockstep.play(requests(task_sets, 4, temperature=1.0)))
    assert [t.segments for t in runs[0]] == [t.segments for t in runs[1]]
    assert len({tuple(t.segments[0].token_ids) for t in runs[0]}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_log_probs_are_the_learner_s(
    sync: WeightSync, pool: RolloutPool, learner: Any, task_sets: Any, temperature: float
):
    trajectories = pool.play(requests(task_sets, 4, temperature=temperature))
    segments = [t.segments[0] for t in trajectories]
    scores = learner.logprobs([Sample(s.token_ids, s.loss_mask) for s in segments], temperature=temperature)
    for trajectory, segment, row in zip(trajectories, segments, scores, strict=True):
        expected = np.array(row)[np.array(segment.loss_mask, bool)]
        assert np.abs(sampled(trajectory)[:, 1] - expected).max() < 1e-3
        assert (sampled(trajectory)[:, 1] <= 0.0).all()
    versions = {v for s in segments for _, _, v in s.versions}
    assert versions == {sync.version}


@pytest.mark.slow
def test_a_turn_in_which_weights_change_keeps_its_tokens_and_goes_on_as_the_new_weights_would(
    sync: WeightSync, pool: RolloutPool, learner: Any, task_sets: Any
):
    weights = [learner.publish(), changed_weights(learner, LAYER, 1.5)]  # of even and of odd versions
    version = 100
    pool.load_weights(weights[0], version)
    with ThreadPoolExecutor(1) as thread:
        playing = thread.submit(pool.play, requests(task_sets, 4, temperature=1.0))
        while not playing.done() and version < 106:
            if longest_answer(pool) > 2:
                version += 1
                pool.load_weights(weights[version % 2], version)
                time.sleep(1.0)  # each change costs a prefill of all contexts first
            time.sleep(0.05)
    segments = [segment for trajectory in playing.result() for segment in trajectory.segments]
    expected = []
    for scored in weights:
        pool.load_weights(scored, version + 1)
        expected += pool.score([s.token_ids for s in segments])
    apart, swaps = [], 0
    for number, segment in enumerate(segments):
        spans = segment.versions
        assert [at for start, stop, _ in spans for at in range(start, stop)] == list(np.flatnonzero(segment.loss_mask))
        swaps += sum(before[1] == after[0] for before, after in pairwise(spans))
        for start, stop, made_by in spans:
            own, other = (np.array(expected[(made_by + n) % 2][number][start:stop]) for n in (0, 1))
            assert np.abs(own - segment.logprobs[start:stop]).max() < 1e-3
            apart.append(np.abs(other - segment.logprobs[start:stop]).mean())
    assert swaps > 0, f"{version - 100} changes of weights, none within a turn"
    assert np.mean(apart) > 0.05  # the two policies differ, so the spans' log-probs tell them apart


@pytest.mark.slow
def test_a_killed_worker_takes_its_engine_with_it_and_another_goes_on_with_its_weights(
    sync: WeightSync, pool: RolloutPool, task_sets: Any
):
    (worker,) = pool._workers
    number = pool._numbers[worker]
    processes = psutil.Process(get(worker.ready.remote(), 60, "the worker")).children(recursive=True)
    assert processes
    timer = threading.Timer(1.0, lambda: ray.kill(worker))
    timer.start()
    played = pool.play(requests(task_sets, 12, temperature=1.0))
    timer.join()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)
    assert {v for t in played for s in t.segments for _, _, v in s.versions} == {sync.version}
    workers = {t.worker for t in played}
    assert number + 1 in workers and workers <= {number, number + 1}  # some may have ended before
    assert sync.probe()[0] < 2e-3


@pytest.mark.slow
def test_an_engine_s_process_that_dies_between_episodes_is_replaced_at_the_next_sync(
    sync: WeightSync, pool: RolloutPool, task_sets: Any
):
    (worker,) = pool._workers
    number = pool._numbers[worker]
    for process in psutil.Process(get(worker.ready.remote(), 60, "the worker")).children(recursive=True):
        if "EngineCore" in process.name() or "EngineCore" in " ".join(process.cmdline()):
            process.kill()
    assert sync.run().mean_gap < 2e-3
    assert {t.worker for t in pool.play(requests(task_sets, 2, temperature=0.0))} == {number + 1}
