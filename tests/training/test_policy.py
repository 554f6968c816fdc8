"""Log-probabilities by blocks of logits, against logits held whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.learner import policy


@pytest.mark.parametrize("block", [7, 64, 1000], ids=["uneven blocks", "even blocks", "one block"])
@pytest.mark.parametrize(("temperature", "bias"), [(1.0, False), (0.7, True)], ids=["plain", "temperature and bias"])
def test_blocks_of_logits_give_what_whole_logits_give(monkeypatch, block: int, temperature: float, bias: bool):
    monkeypatch.setattr(policy, "CPU_VOCABULARY_BLOCK", block)
    torch.manual_seed(0)
    hidden = torch.randn(10, 8, requires_grad=True)
    head = nn.Linear(8, 128, bias=bias)
    # Some logits far above the rest, in the last block for one: the running maximum has to move.
    head.weight.data[[3, 127]] *= 30
    targets, grad = torch.randint(0, 128, (10,)), torch.randn(10)

    logprobs, entropy = policy._LogProbs.apply(hidden, head.weight, head.bias, targets, temperature, 4)
    logprobs.backward(grad)
    ours = [t.grad.clone() for t in (hidden, *head.parameters())]
    for tensor in (hidden, *head.parameters()):
        tensor.grad = None
    whole = torch.log_softmax(head(hidden) / temperature, -1)
    whole.gather(1, targets[:, None])[:, 0].backward(grad)

    torch.testing.assert_close(logprobs, whole.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, -(whole.exp() * whole).sum(-1), rtol=1e-4, atol=1e-5)
    for mine, tensor in zip(ours, (hidden, *head.parameters()), strict=True):
        torch.testing.assert_close(mine, tensor.grad, rtol=1e-4, atol=1e-5)


def test_a_confident_token_has_the_gradient_of_what_it_is_not(monkeypatch):
    monkeypatch.setattr(policy, "CPU_VOCABULARY_BLOCK", 7)
    torch.manual_seed(0)
    hidden, weight, targets = torch.rand(4, 8), torch.randn(128, 8) / 10, torch.full((4,), 50)
    hidden[:, 0], weight[50, 0] = 1.0, 18.0  # p = 1 − 2e-6, which float32 keeps two digits of
    gradients = []
    for dtype in (torch.float32, torch.float64):
        row, head = hidden.detach().to(dtype).clone().requires_grad_(), weight.to(dtype)
        if dtype == torch.float32:
            logprobs, _ = policy._LogProbs.apply(row, head, None, targets, 1.0, 4)
        else:
            logprobs = torch.log_softmax(row @ head.T, -1)[:, 50]
        logprobs.sum().backward()
        gradients.append(row.grad.double())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=0)
