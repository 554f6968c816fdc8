"""The learner's part of `benchmarks.learner`: one measurement in one process, without Ray, vLLM or Hydra.

`kind` says which: an update with the prefix tree or packed side by side (`tree`, `plain`), the matrix products that this machine
can do (`gemm`), or gradients and log-probabilities in float32 against plain Hugging Face (`exact`).
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from benchmarks.batch import Row, read_batch
from benchmarks.process import job_main
from training.learner.base import LearnerConfig, LossInputs, LossOutputs, Sample, torch_dtype
from training.learner.engine import single_process
from training.learner.fsdp import FSDPLearner

LR = 1e-6
EXACT_TOKENS = 8_000


def policy_gradient(inputs: LossInputs) -> LossOutputs:
    """−Σ advantage · log-probability / tokens: the gradient of an on-policy GRPO step. (verl's losses would bring Ray in.)"""
    assert inputs.advantages_BT is not None
    gain = (inputs.advantages_BT * inputs.logprobs_BT * inputs.mask_BT).sum()
    return LossOutputs(-gain / inputs.batch_tokens * inputs.world_size, {})


def run(job: dict[str, Any]) -> Mapping[str, Any]:
    """`kind`, and what it needs of `model`, `trajectories`, `max_tokens`, `count`, `dtype`, `micro_batch_tokens`."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    if job["kind"] == "gemm":
        return {"tflops": gemm_tflops(job["dtype"])}
    rows = read_batch(Path(job["trajectories"]), job["max_tokens"], job.get("count"))
    single_process()
    config = LearnerConfig(job["model"], dtype=job["dtype"], micro_batch_tokens=job["micro_batch_tokens"], threads=threads)
    if job["kind"] == "exact":
        return exact(replace(config, dtype="float32", max_grad_norm=float("inf")), first_rows(rows, EXACT_TOKENS))
    return update(replace(config, prefix_tree=job["kind"] == "tree"), rows)


def samples_of(rows: Sequence[Row]) -> list[Sample]:
    return [Sample(row.token_ids, row.loss_mask, advantages=[row.advantage] * len(row.token_ids)) for row in rows]


def update(config: LearnerConfig, rows: Sequence[Row]) -> dict[str, float]:
    """Seconds of one update and the peak memory: the process's, or what torch allocated on the GPU.

    The same update at rate 0 before it: what is built once is built, and the memory has been touched, as in all steps of a run
    but the first, which takes a quarter longer. (TRL's many small batches touch theirs within the first of them.)
    """
    on_gpu = config.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    learner, samples = FSDPLearner(config), samples_of(rows)
    learner.update(samples, policy_gradient, 0.0)
    synchronize(config.device)
    start = time.perf_counter()
    metrics = learner.update(samples, policy_gradient, LR)
    synchronize(config.device)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()
    return {"seconds": seconds, "computed_tokens": metrics["unique_tokens"], "peak_bytes": peak}


def synchronize(device: str) -> None:
    """Waits for what the device was given to do; a CPU has done it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def gemm_tflops(dtype: str, device: str = "cpu", seconds: float = 1.5) -> float:
    """The best rate of square matrix products, in TFLOP/s."""
    best = 0.0
    for size in (1024, 2048, 4096) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(torch_dtype(dtype)) for _ in range(2))
        a @ b
        synchronize(device)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            a @ b
            synchronize(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e12)
    return best


# -- against plain Hugging Face


class GradientKeeper(torch.optim.Optimizer):
    """Stands where an optimizer stands: keeps the gradients and moves nothing."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self.gradients: list[Tensor] = []

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.gradients = [(p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad).clone() for p in parameters]


def first_rows(rows: Sequence[Row], tokens: int) -> list[Row]:
    """The first rows that have at most so many tokens together; one at least."""
    together = np.cumsum([len(row.token_ids) for row in rows])
    return list(rows[: max(1, int((together <= tokens).sum()))])


def exact(config: LearnerConfig, rows: Sequence[Row]) -> dict[str, float]:
    """Gradient and log-probabilities of the tree against Hugging Face's, one sequence after the other.

    Advantages are drawn at random, so that shared tokens get different weights from their samples and no gradient is zero.
    Two gradients in float32 differ by the rounding of both, and Hugging Face's alone is more than 1e-5 from its own in float64;
    so ours is measured against that.
    """
    drawn = np.random.default_rng(0).normal(size=len(rows)).tolist()
    samples = samples_of([replace(row, advantage=value) for row, value in zip(rows, drawn, strict=True)])
    learner = FSDPLearner(config)
    logprobs = learner.logprobs(samples)
    keeper = GradientKeeper(learner.policy.parameters())
    learner.optimizer = keeper  # type: ignore[assignment]
    learner.update(samples, policy_gradient, 0.0)
    names = [name for name, _ in learner.policy.model.named_parameters()]  # type: ignore[operator]
    ours = dict(zip(names, keeper.gradients, strict=True))
    del learner, keeper

    plain, expected = hugging_face(config.model_path, samples, drawn, torch.float32)
    true, _ = hugging_face(config.model_path, samples, drawn, torch.float64)
    return {
        "grad_rel_err": distance(ours, true),
        "grad_rel_err_float32": distance(ours, plain),
        "hugging_face_rel_err": distance(plain, true),
        "logprob_max_abs": max(float((e - torch.tensor(own[1:])).abs().max()) for e, own in zip(expected, logprobs, strict=True)),
        "tokens": float(sum(len(s.token_ids) for s in samples)),
    }


def hugging_face(
    model_path: str, samples: Sequence[Sample], advantages: Sequence[float], dtype: torch.dtype
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The gradient of the loss that `policy_gradient` is, by parameter, and the log-probability of every token but the first."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype)
    tokens, all_logprobs = sum(s.loss_tokens for s in samples), []
    for sample, advantage in zip(samples, advantages, strict=True):
        ids = torch.tensor(list(sample.token_ids))[None]
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        all_logprobs.append(logprobs.detach())
        (-advantage * logprobs[torch.tensor(list(sample.loss_mask[1:]))].sum() / tokens).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, all_logprobs


def distance(gradients: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """‖gradients − expected‖ / ‖expected‖ over all parameters."""
    wrong = sum(float((gradients[name] - value).double().square().sum()) for name, value in expected.items())
    return float((wrong / sum(float(value.double().square().sum()) for value in expected.values())) ** 0.5)


def peak_bytes() -> int:
    """Peak resident memory of this process. (`ru_maxrss` would begin with that of the process that started it.)"""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def check_alone() -> None:
    """Raises AssertionError where this process holds what a learner has no need of: its memory would be counted too."""
    strangers = {"ray", "vllm", "hydra"} & sys.modules.keys()
    assert not strangers, f"the learner imported {sorted(strangers)}"


def _alone(job: dict[str, Any]) -> Mapping[str, Any]:
    result = run(job)
    check_alone()
    return result


if __name__ == "__main__":
    job_main(_alone)
