"""Losses and advantages on numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.errors import TaudojoError
from training.learner.base import LossFn, LossInputs
from training.loss import PolicyLossConfig, advantages, policy_loss, sft_loss

LOGPROBS = torch.tensor([[-1.0, -2.0, -0.5], [-0.25, -3.0, -1.5]])


def logs(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows).log()


def batch(mask: list[list[float]] | None = None, **tensors: Any) -> LossInputs:
    """Two samples of three loss tokens, on one rank."""
    mask_BT = torch.tensor(mask or [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    fields: dict[str, Any] = {
        "logprobs_BT": LOGPROBS.clone().requires_grad_(),
        "mask_BT": mask_BT,
        "entropy_BT": torch.zeros(2, 3),
        "batch_tokens": int(mask_BT.sum()),
        "batch_samples": 2,
        "world_size": 1,
    }
    return LossInputs(**fields | tensors)


def on_policy(inputs: LossInputs) -> LossInputs:
    """The sampler's log-probs are the learner's."""
    return replace(inputs, sampler_logprobs_BT=inputs.logprobs_BT.detach())


def value_and_gradient(loss: LossFn, inputs: LossInputs) -> tuple[float, list[list[float]], dict[str, float]]:
    outputs = loss(inputs)
    (gradient,) = torch.autograd.grad(outputs.loss, inputs.logprobs_BT)
    return outputs.loss.item(), gradient.tolist(), {name: float(x) for name, x in outputs.metrics.items()}


def close(value: Any) -> Any:
    return pytest.approx(value, abs=1e-6)


def rows(values: list[list[float]]) -> Any:
    return [close(row) for row in values]


def part(inputs: LossInputs, row: int) -> LossInputs:
    """One sample as a micro-batch of its own: the whole batch's size stays."""
    tensors = {name: value[row : row + 1] for name, value in vars(inputs).items() if isinstance(value, Tensor)}
    return replace(inputs, **tensors)


# -- supervised


def test_the_sft_loss_is_the_mean_negative_log_likelihood_of_the_batch_s_tokens():
    value, gradient, _ = value_and_gradient(sft_loss, batch(mask=[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]))
    assert value == close((1.0 + 2.0 + 0.5 + 0.25 + 3.0) / 5)
    assert gradient == rows([[-0.2, -0.2, -0.2], [-0.2, -0.2, 0.0]])


def test_the_sft_loss_is_scaled_up_where_ranks_average_their_gradients():
    assert sft_loss(batch(world_size=2)).loss.item() == close(2 * 8.25 / 6)


# -- policy


def test_on_policy_the_gradient_is_the_policy_gradient():
    inputs = on_policy(
        batch(mask=[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]], advantages_BT=torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]]))
    )
    value, gradient, metrics = value_and_gradient(policy_loss(PolicyLossConfig()), inputs)
    assert value == close(-(3 * 1.0 + 2 * -2.0) / 5)
    assert gradient == rows([[-0.2, -0.2, -0.2], [0.4, 0.4, 0.0]])
    assert metrics["ratio"] == close(5.0)  # sums over tokens: the mean ratio is 1
    assert metrics["kl_sampler"] == metrics["sampler_gap"] == metrics["pg_clipfrac"] == close(0.0)


def test_ratios_are_clipped_on_the_side_that_the_advantage_pulls_to():
    ratios = [[1.5, 0.5, 1.1], [0.5, 1.5, 5.0]]
    old = LOGPROBS - logs(ratios)
    inputs = batch(
        advantages_BT=torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]]), old_logprobs_BT=old, sampler_logprobs_BT=old
    )
    value, gradient, metrics = value_and_gradient(policy_loss(PolicyLossConfig(clip_low=0.2, clip_high=0.28, clip_c=3.0)), inputs)
    #        up to 1.28   unclipped  unclipped      down to 0.8  unclipped  at most clip_c = 3
    losses = [-1.28, -0.5, -1.1, 2 * 0.8, 2 * 1.5, 2 * 3.0]
    assert value == close(sum(losses) / 6)
    assert gradient == rows([[0.0, -0.5 / 6, -1.1 / 6], [0.0, 2 * 1.5 / 6, 0.0]])
    assert metrics["pg_clipfrac"] == close(2.0)
    assert metrics["pg_clipfrac_lower"] == close(1.0)
    assert metrics["ratio"] == close(sum(map(sum, ratios)))


def test_importance_weights_against_the_sampler_are_truncated():
    weights = [[0.5, 1.0, 4.0], [1.0, 3.0, 9.0]]
    inputs = batch(
        mask=[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]],
        advantages_BT=torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]]),
        sampler_logprobs_BT=LOGPROBS - logs(weights),
    )
    value, gradient, metrics = value_and_gradient(policy_loss(PolicyLossConfig(tis_cap=2.0)), inputs)
    assert value == close(-((0.5 + 1.0 + 2.0) - 2.0 * (1.0 + 2.0)) / 5)
    assert gradient == rows([[-0.5 / 5, -1.0 / 5, -2.0 / 5], [2.0 / 5, 4.0 / 5, 0.0]])
    seen = [0.5, 1.0, 4.0, 1.0, 3.0]
    assert metrics["tis_truncated"] == close(2.0)
    assert metrics["max/sampler_ratio"] == close(4.0)
    assert metrics["sampler_gap"] == close(sum(abs(math.log(w)) for w in seen))
    assert metrics["kl_sampler"] == pytest.approx(sum(1 / w - 1 + math.log(w) for w in seen), abs=1e-5)


def test_without_a_cap_there_are_no_importance_weights():
    inputs = batch(advantages_BT=torch.ones(2, 3), sampler_logprobs_BT=LOGPROBS - math.log(3.0))
    value, _, metrics = value_and_gradient(policy_loss(PolicyLossConfig(tis_cap=None)), inputs)
    assert value == close(-1.0)
    assert metrics["tis_truncated"] == close(0.0)


def test_the_kl_to_the_reference_is_the_k3_estimate():
    gaps = [[0.5, 0.0, -1.0], [0.25, 2.0, 9.0]]  # reference − policy; the last token is masked
    inputs = on_policy(
        batch(
            mask=[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]],
            advantages_BT=torch.zeros(2, 3),
            reference_logprobs_BT=LOGPROBS + torch.tensor(gaps),
        )
    )
    value, gradient, metrics = value_and_gradient(policy_loss(PolicyLossConfig(kl_coef=0.1)), inputs)
    seen = [0.5, 0.0, -1.0, 0.25, 2.0]
    kl = sum(math.exp(d) - d - 1 for d in seen)
    assert metrics["kl_reference"] == pytest.approx(kl, abs=1e-5)
    assert value == close(0.1 * kl / 5)
    assert gradient[0] == close([0.1 * (1 - math.exp(d)) / 5 for d in gaps[0]])
    assert gradient[1][2] == 0.0


def test_without_its_coefficient_the_reference_costs_nothing():
    inputs = on_policy(batch(advantages_BT=torch.zeros(2, 3), reference_logprobs_BT=LOGPROBS + 1.0))
    outputs = policy_loss(PolicyLossConfig())(inputs)
    assert outputs.loss.item() == close(0.0)
    assert "kl_reference" not in outputs.metrics


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_micro_batch_losses_add_up_to_the_batch_s(aggregation: str):
    inputs = batch(
        mask=[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]],
        advantages_BT=torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]]),
        old_logprobs_BT=LOGPROBS - logs([[1.5, 0.5, 1.1], [0.5, 1.5, 5.0]]),
        sampler_logprobs_BT=LOGPROBS + 0.3,
        reference_logprobs_BT=LOGPROBS - 0.4,
    )
    loss = policy_loss(PolicyLossConfig(aggregation=aggregation, kl_coef=0.2))
    whole = loss(inputs)
    parts = [loss(part(inputs, row)) for row in (0, 1)]
    assert sum(p.loss.item() for p in parts) == close(whole.loss.item())
    for name in whole.metrics:
        values = [float(p.metrics[name]) for p in parts]
        together = max(values) if name.startswith("max/") else sum(values)
        assert together == pytest.approx(float(whole.metrics[name]), abs=1e-5), name


def test_sft_micro_batch_losses_add_up_to_the_batch_s():
    inputs = batch(mask=[[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert sum(sft_loss(part(inputs, row)).loss.item() for row in (0, 1)) == close(sft_loss(inputs).loss.item())


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(TaudojoError, match=r"algorithm\.loss=vanila is not one of .*; did you mean vanilla\?"):
        policy_loss(PolicyLossConfig(name="vanila"))


def test_a_policy_loss_without_advantages_is_an_error():
    with pytest.raises(ValueError, match="needs advantages and the sampler's log-probs"):
        policy_loss(PolicyLossConfig())(batch())


# -- advantages


def test_grpo_compares_each_trajectory_with_its_group():
    values = advantages([1.0, 0.0, 0.5, 0.5, 3.0, 1.0, 2.0], [0, 0, 1, 1, 2, 2, 2])
    half = 0.5 / (math.sqrt(0.5) + 1e-6)  # the sample standard deviation of 1 and 0 is √½, that of 3, 1 and 2 is 1
    assert values == pytest.approx([half, -half, 0.0, 0.0, 1.0, -1.0, 0.0], abs=1e-5)


def test_without_the_standard_deviation_an_advantage_is_the_distance_from_the_mean():
    assert advantages([1.0, 0.0, 3.0, 1.0, 2.0], [0, 0, 2, 2, 2], normalize_by_std=False) == close([0.5, -0.5, 1.0, -1.0, 0.0])


def test_the_order_of_trajectories_does_not_matter_to_their_advantages():
    assert advantages([0.0, 3.0, 1.0, 1.0], [4, 9, 4, 9], normalize_by_std=False) == close([-0.5, 1.0, 0.5, -1.0])


def test_an_unknown_estimator_names_the_nearest():
    with pytest.raises(TaudojoError, match=r"algorithm\.advantage=gpro is not one of .*; did you mean grpo\?"):
        advantages([1.0], [0], estimator="gpro")
