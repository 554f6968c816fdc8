"""What runs where vLLM runs the model: loading live weights, and norms that a CPU does in one pass.

vLLM imports this module in its engine's process, by the name that `vllm.py` gives it.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import vllm._custom_ops  # noqa: F401 (loads the kernels)
from vllm import ir
from vllm.platforms import current_platform

#: The name of the norms below in vLLM's `ir_op_priority`.
ONE_PASS = "one_pass"


class WorkerExtension:
    """Runs where vLLM runs the model, mixed into its Worker class."""

    model_runner: Any

    def taudojo_end_with(self, pid: int) -> None:
        """Ends this process when that one is gone: vLLM's own would outlive an actor that was killed, and keep its memory."""
        gone = os.pidfd_open(pid)

        def watch() -> None:
            select.select([gone], [], [])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()

    def taudojo_load(self, file: str, skip: tuple[str, ...] = ()) -> int:
        """Loads a safetensors file into the live model; returns the number of tensors. `skip` exists for tests of the probe."""
        from safetensors import safe_open

        names: list[str] = []

        def tensors() -> Iterator[tuple[str, Any]]:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 (not a dict)
                    names.append(name)
                    yield name, handle.get_tensor(name)

        self.model_runner.reload_weights(weights_iterator=tensors())
        if "lm_head" not in skip:
            self._repack_tied_head()
        return len(names)

    def _repack_tied_head(self) -> None:
        if not current_platform.is_cpu():
            return
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        for module in self.model_runner.get_model().modules():
            if isinstance(module, VocabParallelEmbedding):
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def _fits(x: torch.Tensor, weight: torch.Tensor | None, variance_size: int | None) -> bool:
    return weight is not None and weight.dtype == x.dtype and variance_size is None and x.is_contiguous()


@lru_cache(maxsize=16)
def _ones(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.ones(size, dtype=dtype)


@ir.ops.rms_norm.register_impl(
    ONE_PASS,
    supported=current_platform.is_cpu(),
    supports_args=lambda x, weight, epsilon, variance_size=None: _fits(x, weight, variance_size),
)
def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> torch.Tensor:
    """x / rms(x) × weight.

    vLLM has a kernel for it that it does not call on CPUs, where it goes through eight operations in float32 (7.2 instead of 0.8
    ms for 4,000 tokens of 576). The kernel multiplies before it rounds; given ones and multiplied after it, it rounds as Hugging
    Face's models and so the learner do.
    """
    assert weight is not None
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, _ones(weight.numel(), x.dtype), epsilon)
    return out.mul_(weight)


@ir.ops.fused_add_rms_norm.register_impl(
    ONE_PASS,
    supported=current_platform.is_cpu(),
    supports_args=lambda x, x_residual, weight, epsilon, variance_size=None: (
        _fits(x, weight, variance_size) and x_residual.is_contiguous()
    ),
    inplace=True,
)
def fused_add_rms_norm(
    x: torch.Tensor, x_residual: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of x + residual, which becomes the new residual."""
    assert weight is not None
    torch.ops._C.fused_add_rms_norm(x, x_residual, _ones(weight.numel(), x.dtype), epsilon)
    return x.mul_(weight), x_residual
