"""On a CPU: RMSNorm and SwiGLU of Hugging Face decoders, a few rows at a time.

Both are cheap arithmetic over large tensors, so memory sets their time: autograd writes and reads every intermediate result,
half of them in float32, and keeps them for the backward pass. Here a run of rows goes through all steps while it is in a
cache, and only inputs are kept. The same operations in the same order as the modules that are replaced, so the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

#: Numbers in a run of rows: 1 MB of float32.
RUN = 1 << 18

NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
GATED = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")


def use_rowwise(model: nn.Module) -> None:
    """Replaces the forward of every such module in `model`."""
    for module in model.modules():
        name = type(module).__name__
        if name in NORMS:
            module.forward = MethodType(_norm, module)  # type: ignore[method-assign]
        elif name in GATED and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation"):
            module.forward = MethodType(_gated, module)  # type: ignore[method-assign]


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


def _gated(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(_SwiGLU.apply(self.gate_proj(x), self.up_proj(x)))


class _RMSNorm(torch.autograd.Function):
    """weight · x / √(mean(x²) + ε) over the last dimension (Zhang & Sennrich 2019), the quotient in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        x_RD, out = x.flatten(0, -2), torch.empty_like(x)
        out_RD = out.view(x_RD.shape)
        scale_R = torch.empty(len(x_RD), 1, dtype=torch.float32)
        for rows in _runs(x_RD):
            whole = x_RD[rows].float()
            scale = whole.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
            scale_R[rows] = scale
            torch.mul(weight_D, (whole * scale).to(x.dtype), out=out_RD[rows])
        ctx.save_for_backward(x, weight_D, scale_R)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, scale_R = ctx.saved_tensors
        x_RD, grad_out_RD, grad = x.flatten(0, -2), grad_out.flatten(0, -2), torch.empty_like(x)
        grad_RD, grad_weight = grad.view(x_RD.shape), torch.zeros(weight_D.shape, dtype=torch.float32)
        weight = weight_D.float()
        for rows in _runs(x_RD):
            scale, above = scale_R[rows], grad_out_RD[rows].float()
            quotient = x_RD[rows] * scale  # a new tensor in float32, whatever x is
            grad_weight += (above * quotient).sum(0)
            above = above * weight
            along = (above * quotient).mean(-1, keepdim=True)
            grad_RD[rows] = above.sub_(quotient.mul_(along)).mul_(scale)
        return grad, grad_weight.to(weight_D.dtype), None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) · up (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        gate_RF, up_RF, out_RF = (t.flatten(0, -2) for t in (gate, up, out))
        for rows in _runs(gate_RF):
            torch.mul(nn.functional.silu(gate_RF[rows]), up_RF[rows], out=out_RF[rows])
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        gate_RF, up_RF, above_RF, grad_gate_RF, grad_up_RF = (t.flatten(0, -2) for t in (gate, up, grad_out, grad_gate, grad_up))
        for rows in _runs(gate_RF):
            gate_run, above = gate_RF[rows], above_RF[rows]
            torch.mul(above, nn.functional.silu(gate_run), out=grad_up_RF[rows])
            grad_gate_RF[rows] = torch.ops.aten.silu_backward(above * up_RF[rows], gate_run)
        return grad_gate, grad_up


def _runs(x_RD: Tensor) -> Iterator[slice]:
    size = max(1, RUN // x_RD.shape[1])
    for start in range(0, len(x_RD), size):
        yield slice(start, start + size)
