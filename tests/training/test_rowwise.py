"""The row-wise modules against the Hugging Face ones that they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from training.learner import rowwise

SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "module",
    [LlamaRMSNorm(24), Qwen3RMSNorm(24), LlamaMLP(LlamaConfig(**SIZES)), Qwen3MLP(Qwen3Config(**SIZES))],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_values_and_gradients(monkeypatch, module: nn.Module, dtype: torch.dtype):
    monkeypatch.setattr(rowwise, "RUN", 100)  # several runs, the last one shorter
    torch.manual_seed(0)
    theirs = copy.deepcopy(module).to(dtype)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = copy.deepcopy(theirs)
    rowwise.use_rowwise(ours)
    assert "forward" in vars(ours)
    x = torch.randn(2, 7, 24, dtype=dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [m(i) for m, i in zip((ours, theirs), inputs, strict=True)]
    above = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(above)
    torch.testing.assert_close(outputs[0], outputs[1])
    # In bfloat16 autograd rounds after every step, ours once.
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **close)
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, their.grad, rtol=close["rtol"], atol=10 * close["atol"])


def test_other_modules_stay_as_they_are():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    rowwise.use_rowwise(model)
    assert not any("forward" in vars(m) for m in model.modules())
