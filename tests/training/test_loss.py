"""Losses and advantages on numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from envs.errors import TaudojoError
from training.config import AlgorithmSection
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
        "batch_longest": 3,
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
    """One sample as a micro-batch of its own, as wide as it is long: the whole batch's size stays."""
    width = int(inputs.mask_BT[row].sum())
    tensors = {name: value[row : row + 1, :width] for name, value in vars(inputs).items() if isinstance(value, Tensor)}
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


def test_tokens_on_which_sampler_and_learner_differ_too_much_are_left_out():
    weights = [[0.5, 1.0, 4.0], [1.0, 3.0, 9.0]]
    inputs = batch(
        mask=[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]],
        advantages_BT=torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]]),
        sampler_logprobs_BT=LOGPROBS - logs(weights),
    )
    value, gradient, metrics = value_and_gradient(policy_loss(PolicyLossConfig(mask_below=0.6, mask_above=3.5)), inputs)
    assert value == close(-(1.0 - 2.0 * (1.0 + 2.0)) / 5)  # 0.5 and 4.0 are out, 3.0 is truncated to 2; still five tokens
    assert gradient == rows([[0.0, -1.0 / 5, 0.0], [2.0 / 5, 4.0 / 5, 0.0]])
    assert metrics["sampler_masked"] == close(2.0)
    assert metrics["tis_truncated"] == close(2.0)  # diagnostics see all tokens


def test_at_the_level_of_a_sequence_the_geometric_mean_decides():
    weights = [[0.5, 1.0, 4.0], [1.0, 9.0, 1.0]]  # means 2^⅓ = 1.26 and, of two tokens, 3
    inputs = batch(
        mask=[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]],
        advantages_BT=torch.ones(2, 3),
        sampler_logprobs_BT=LOGPROBS - logs(weights),
    )
    config = PolicyLossConfig(tis_cap=None, mask_below=0.5, mask_above=2.0, mask_level="sequence")
    value, gradient, metrics = value_and_gradient(policy_loss(config), inputs)
    assert value == close(-3 / 5)
    assert gradient == rows([[-0.2, -0.2, -0.2], [0.0, 0.0, 0.0]])
    assert metrics["sampler_masked"] == close(2.0)


@pytest.mark.parametrize("name", get_args(AlgorithmSection.model_fields["loss"].annotation))
def test_a_masked_token_has_no_gradient_under_any_loss(name: str):
    inputs = batch(
        advantages_BT=torch.tensor([[1.0] * 3, [-2.0] * 3]),
        sampler_logprobs_BT=LOGPROBS - logs([[1.0, 1.0, 50.0], [50.0, 50.0, 50.0]]),
    )
    _, gradient, _ = value_and_gradient(policy_loss(PolicyLossConfig(name=name, mask_above=10.0)), inputs)
    assert gradient[0][0] != 0 and gradient[0][1] != 0
    assert gradient[0][2] == 0 and gradient[1] == [0.0] * 3


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


@pytest.mark.parametrize("aggregation", get_args(AlgorithmSection.model_fields["aggregation"].annotation))
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


# -- the other policy losses

#: Probabilities of the sampled tokens now and before; ratios 3/2, 1/2, 1 and 1/2, 3/2, 4.
NOW = [[0.6, 0.2, 0.5], [0.3, 0.75, 0.4]]
BEFORE = [[0.4, 0.4, 0.5], [0.6, 0.5, 0.1]]


def off_policy(first: float, second: float, now: list[list[float]] = NOW, before: list[list[float]] = BEFORE) -> LossInputs:
    """The two samples with an advantage each, sampled by the policy as it was before."""
    return batch(
        logprobs_BT=logs(now).requires_grad_(),
        advantages_BT=torch.tensor([[first] * 3, [second] * 3]),
        old_logprobs_BT=logs(before),
        sampler_logprobs_BT=logs(before),
    )


def ln(x: float) -> float:
    return math.log(x)


def check(config: PolicyLossConfig, inputs: LossInputs, losses: list[list[float]], gradients: list[list[float]]) -> None:
    """Token losses and their gradients, both divided by the six tokens."""
    value, gradient, _ = value_and_gradient(policy_loss(config), inputs)
    assert value == close(sum(map(sum, losses)) / 6)
    assert gradient == rows([[g / 6 for g in row] for row in gradients])


def test_dppo_tv_leaves_out_tokens_whose_probability_moved_too_far():
    # moved by 0.2 −0.2 0 and −0.3 0.25 0.3: up to 0.05 where it is rewarded, down to −0.2 where it is punished
    check(
        PolicyLossConfig(name="dppo_tv", clip_low=0.2, clip_high=0.05, clip_c=3.0),
        off_policy(1.0, -2.0),
        [[0.0, -0.5 * ln(0.2), -1.0 * ln(0.5)], [0.0, 2 * 1.5 * ln(0.75), 2 * 3.0 * ln(0.4)]],
        [[0.0, -0.5, -1.0], [0.0, 2 * 1.5, 2 * 3.0]],
    )


def test_dppo_kl_leaves_out_tokens_whose_divergence_is_too_large():
    # 0.4 → 0.6 has 0.2·ln 1.5 = 0.08 > 0.05; 0.6 → 0.3 has 0.6·ln 2 + 0.4·ln(4/7) = 0.19 < 0.2; the others move back or not
    check(
        PolicyLossConfig(name="dppo_kl", clip_low=0.2, clip_high=0.05, clip_c=3.0),
        off_policy(1.0, -2.0),
        [[0.0, -0.5 * ln(0.2), -1.0 * ln(0.5)], [2 * 0.5 * ln(0.3), 2 * 1.5 * ln(0.75), 2 * 3.0 * ln(0.4)]],
        [[0.0, -0.5, -1.0], [2 * 0.5, 2 * 1.5, 2 * 3.0]],
    )


def test_gspo_clips_the_geometric_mean_of_a_sequence_s_ratios():
    first = (1.5 * 0.5 * 1.0) ** (1 / 3)  # the second is 3^⅓ = 1.44 > 1.28
    check(
        PolicyLossConfig(name="gspo", clip_low=0.2, clip_high=0.28),
        off_policy(1.0, 1.0),
        [[-first] * 3, [-1.28] * 3],
        [[-first] * 3, [0.0] * 3],
    )


def test_sapo_weighs_ratios_by_a_soft_gate():
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def slope(x: float) -> float:
        return 4 * sigmoid(x) * (1 - sigmoid(x))

    first, second = [1.5, 0.5, 1.0], [0.5, 1.5, 4.0]  # temperatures 1 and 1.05; sequences are equally long
    check(
        PolicyLossConfig(name="sapo"),
        off_policy(1.0, -2.0),
        [[-4 * sigmoid(r - 1) for r in first], [2 * 4 / 1.05 * sigmoid(1.05 * (r - 1)) for r in second]],
        [[-slope(r - 1) * r for r in first], [2 * slope(1.05 * (r - 1)) * r for r in second]],
    )


def test_gpg_is_the_plain_policy_gradient():
    check(
        PolicyLossConfig(name="gpg"),
        off_policy(1.0, -2.0),
        [[-ln(p) for p in NOW[0]], [2 * ln(p) for p in NOW[1]]],
        [[-1.0] * 3, [2.0] * 3],
    )


def covariant(ratios: list[list[float]]) -> LossInputs:
    """Covariances of advantage and log-prob: 0.5625 −0.9375 1.3125 and −1.6875 2.4375 0.1875 (the means are −0.5 and −1.375)."""
    old = LOGPROBS - logs(ratios)
    return batch(advantages_BT=torch.tensor([[1.0] * 3, [-2.0] * 3]), old_logprobs_BT=old, sampler_logprobs_BT=old)


def test_clip_cov_takes_a_token_of_high_covariance_out_of_the_gradient():
    # of the two between 1 and 5, the third token is clipped by its ratio already
    check(
        PolicyLossConfig(name="clip_cov", clip_low=0.2, clip_high=0.28),
        covariant([[1.0, 1.0, 1.5], [1.0, 1.0, 1.0]]),
        [[-1.0, -1.0, -1.28], [2.0, 0.0, 2.0]],
        [[-1.0, -1.0, 0.0], [2.0, 0.0, 2.0]],
    )


def test_kl_cov_holds_the_token_of_highest_covariance_back():
    check(
        PolicyLossConfig(name="kl_cov"),
        covariant([[1.0, 1.0, 1.0], [1.0, 1.5, 1.0]]),
        [[-1.0] * 3, [2.0, 2 * 1.5 + 0.1 * ln(1.5), 2.0]],
        [[-1.0] * 3, [2.0, 2 * 1.5 + 0.1, 2.0]],
    )


def test_geo_mean_clips_log_ratios_and_takes_their_mean():
    first = math.exp((0.28 + ln(0.5) + 0.0) / 3)
    second = math.exp((-0.2 + ln(1.5) + ln(4.0)) / 3)
    check(
        PolicyLossConfig(name="geo_mean", clip_low=0.2, clip_high=0.28),
        off_policy(1.0, -2.0),
        [[-first] * 3, [2 * second] * 3],
        [[0.0, -first, -first], [0.0, 2 * second, 2 * second]],
    )


def test_dro_pays_for_the_square_of_the_log_ratio():
    logs_of_ratios = [[ln(1.5), ln(0.5), 0.0], [ln(0.5), ln(1.5), ln(4.0)]]
    check(
        PolicyLossConfig(name="dro", dro_beta=0.3),
        off_policy(1.0, -2.0),
        [
            [-ln(p) + 0.15 * r**2 for p, r in zip(NOW[0], logs_of_ratios[0], strict=True)],
            [2 * ln(p) + 0.15 * r**2 for p, r in zip(NOW[1], logs_of_ratios[1], strict=True)],
        ],
        [[-1 + 0.3 * r for r in logs_of_ratios[0]], [2 + 0.3 * r for r in logs_of_ratios[1]]],
    )


def test_cispo_clips_weights_and_keeps_every_token_s_gradient():
    check(
        PolicyLossConfig(name="cispo", clip_low=0.2, clip_high=0.28),
        off_policy(1.0, -2.0),
        [[-1.28 * ln(0.6), -0.8 * ln(0.2), -1.0 * ln(0.5)], [2 * 0.8 * ln(0.3), 2 * 1.28 * ln(0.75), 2 * 1.28 * ln(0.4)]],
        [[-1.28, -0.8, -1.0], [2 * 0.8, 2 * 1.28, 2 * 1.28]],
    )


LOSSES = get_args(AlgorithmSection.model_fields["loss"].annotation)


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.endswith("_cov")])  # those choose within a micro-batch
def test_micro_batch_losses_of_every_name_add_up(name: str):
    inputs = off_policy(1.0, -2.0)
    loss = policy_loss(PolicyLossConfig(name=name))
    assert sum(loss(part(inputs, row)).loss.item() for row in (0, 1)) == close(loss(inputs).loss.item())


@pytest.mark.parametrize(
    ("estimator", "kl"),
    [
        ("kl", lambda d: -d),
        ("k1", lambda d: -d),
        ("abs", abs),
        ("mse", lambda d: d * d / 2),
        ("k2", lambda d: d * d / 2),
        ("low_var_kl", lambda d: math.exp(d) - d - 1),
        ("k3", lambda d: math.exp(d) - d - 1),
        ("k1+", lambda d: -d),
        ("k3+", lambda d: math.exp(d) - d - 1),
    ],
)
def test_the_kl_to_the_reference_has_the_estimator_s_value(estimator: str, kl: Callable[[float], float]):
    gaps = [[0.5, 0.0, -1.0], [0.25, 2.0, -0.5]]
    inputs = on_policy(batch(advantages_BT=torch.zeros(2, 3), reference_logprobs_BT=LOGPROBS + torch.tensor(gaps)))
    value = policy_loss(PolicyLossConfig(kl_coef=0.6, kl_estimator=estimator))(inputs).loss.item()
    assert value == close(0.1 * sum(kl(d) for row in gaps for d in row))


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


@pytest.mark.parametrize("estimator", ["rloo", "rloo_vectorized"])
def test_rloo_compares_each_trajectory_with_the_others_of_its_group(estimator: str):
    values = advantages([1.0, 0.0, 2.0, 3.0, 1.0], [0, 0, 0, 1, 1], estimator)
    assert values == close([1 - 2 / 2, 0 - 3 / 2, 2 - 1 / 2, 3 - 1.0, 1 - 3.0])


def test_grpo_vectorized_is_grpo():
    values = advantages([3.0, 1.0, 2.0, 1.0, 0.0], [0, 0, 0, 1, 1], "grpo_vectorized")
    half = 0.5 / (math.sqrt(0.5) + 1e-6)
    assert values == pytest.approx([1.0, -1.0, 0.0, half, -half], abs=1e-5)
    assert advantages([3.0, 1.0], [0, 0], "grpo_vectorized", normalize_by_std=False) == close([1.0, -1.0])


def test_opo_s_baseline_weighs_rewards_by_length():
    values = advantages([1.0, 0.0, 2.0, 3.0, 1.0], [0, 0, 0, 1, 1], "opo", tokens_B=[10, 30, 60, 5, 15])
    #   (10·1 + 30·0 + 60·2) / 100 = 1.3 and (5·3 + 15·1) / 20 = 1.5
    assert values == close([-0.3, -1.3, 0.7, 1.5, -0.5])


def test_pass_at_k_rewards_the_best_of_a_group_by_its_lead():
    rewards, groups = [1.0, 0.25, 0.0, 3.0, 3.0], [0, 0, 0, 1, 1]
    assert advantages(rewards, groups, "grpo_passk", normalize_by_std=False) == close([0.75, 0.0, 0.0, 0.0, 0.0])
    std = math.sqrt(((1 - 1.25 / 3) ** 2 + (0.25 - 1.25 / 3) ** 2 + (1.25 / 3) ** 2) / 2)
    assert advantages(rewards, groups, "grpo_passk")[0] == pytest.approx(0.75 / std, abs=1e-5)


def test_gpg_scales_up_where_rewards_are_zero():
    # four of five rewards are not 0: alpha = 5 / 4
    values = advantages([1.0, 0.0, 2.0, 3.0, 1.0], [0, 0, 0, 1, 1], "gpg")
    assert values == close([0.0, -1.25, 1.25, 1.25, -1.25])


def test_reinforce_plus_plus_whitens_over_the_batch_s_tokens():
    # rewards 1 on two tokens and 0 on six: mean ¼, variance (2·¾² + 6·¼²) / 7
    values = advantages([1.0, 0.0], [0, 1], "reinforce_plus_plus", tokens_B=[2, 6])
    std = math.sqrt((2 * 0.75**2 + 6 * 0.25**2) / 7)
    assert values == pytest.approx([0.75 / std, -0.25 / std], abs=1e-5)


def test_its_baseline_variant_whitens_the_distance_from_the_group_s_mean():
    # distances ½ −½ | 1 −1 on one token each: mean 0, variance 2.5 / 3
    values = advantages([1.0, 0.0, 3.0, 1.0], [0, 0, 1, 1], "reinforce_plus_plus_baseline")
    std = math.sqrt(2.5 / 3)
    assert values == pytest.approx([0.5 / std, -0.5 / std, 1 / std, -1 / std], abs=1e-5)
