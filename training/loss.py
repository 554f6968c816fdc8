"""Losses and advantages: pure functions over `LossInputs`, by verl's names.

The clipped policy objectives, advantage estimators, aggregation and KL estimators are `verl.trainer.ppo.core_algos`;
what is here picks them by name, adds the sampler's importance weights, and measures the sampler/learner mismatch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.errors import TaudojoError
from training.learner.base import LossFn, LossInputs, LossOutputs


@dataclass(frozen=True)
class PolicyLossConfig:
    """`name` and `aggregation` are verl's; `tis_cap` truncates exp(learner − sampler) per token, None leaves it out.

    `mask_below` and `mask_above` leave tokens out of the policy loss whose exp(learner − sampler) lies outside; with
    `mask_level="sequence"` all tokens of a sample whose geometric mean does.

    `clip_low` and `clip_high` bound the ratio's distance from 1, in `geo_mean` its logarithm, and in `dppo_tv` and `dppo_kl` the
    divergence of a token's probability. `dro_beta` weighs the square of the log-ratio in `dro`.
    """

    name: str = "vanilla"
    aggregation: str = "token-mean"
    clip_low: float = 0.2
    clip_high: float = 0.28
    clip_c: float = 3.0
    tis_cap: float | None = 2.0
    mask_below: float | None = None
    mask_above: float | None = None
    mask_level: str = "token"
    dro_beta: float = 0.05
    kl_coef: float = 0.0
    kl_estimator: str = "low_var_kl"


@cache
def core_algos() -> ModuleType:
    """verl's algorithms; imported on first use because it costs seconds."""
    from verl.trainer.ppo import core_algos as module

    return module


def sft_loss(inputs: LossInputs) -> LossOutputs:
    """Mean negative log-likelihood over the batch's loss tokens."""
    nll = -(inputs.logprobs_BT * inputs.mask_BT).sum()
    return LossOutputs(nll / inputs.batch_tokens * inputs.world_size, {})


def policy_loss(config: PolicyLossConfig) -> LossFn:
    """The named policy loss × truncated importance weights, without masked tokens (+ KL to the reference).

    On-policy batches carry no `old_logprobs`: the ratio is then exp(logprob − its own detached value) = 1, and the gradient is
    the policy gradient. The importance weight min(exp(old − sampler), cap) corrects for the engine's different arithmetic
    (Yao et al. 2025, "truncated importance sampling"). Where the two differ too much, a token or a sample can be left out instead
    (masked importance sampling; Ling team 2025, "IcePop", arXiv 2510.18855): the batch is still divided by all of its tokens.
    """
    algos = core_algos()
    known = sorted(algos.POLICY_LOSS_REGISTRY)
    if config.name not in known:
        raise TaudojoError(f"algorithm.loss={config.name} is not one of {', '.join(known)}{_nearest(config.name, known)}")

    def loss(inputs: LossInputs) -> LossOutputs:
        if inputs.advantages_BT is None or inputs.sampler_logprobs_BT is None:
            raise ValueError("a policy loss needs advantages and the sampler's log-probs in every sample")
        mask = inputs.mask_BT
        old = inputs.logprobs_BT.detach() if inputs.old_logprobs_BT is None else inputs.old_logprobs_BT
        gap = (old - inputs.sampler_logprobs_BT) * mask
        weights = torch.exp(gap.clamp(-20, 20))
        truncated = weights.clamp(max=config.tis_cap) if config.tis_cap is not None else None
        trusted = mask * _within(config, gap, mask)
        value, details = algos.get_policy_loss_fn(config.name)(
            old_log_prob=old,
            log_prob=inputs.logprobs_BT,
            advantages=inputs.advantages_BT,
            response_mask=trusted,
            loss_agg_mode=config.aggregation,
            config=_actor_config(config, inputs),
            rollout_is_weights=truncated,
        )
        if config.name == "geo_mean":  # verl's is the mean over the micro-batch
            value = value * len(mask) / inputs.batch_samples * inputs.world_size
        tokens = mask.sum()
        metrics: dict[str, Any] = {
            "kl_sampler": (torch.exp(-gap.clamp(-20, 20)) - 1 + gap).mul(mask).sum(),  # k3 estimate of KL(sampler ‖ learner)
            "sampler_gap": (gap.abs() * mask).sum(),
            "max/sampler_ratio": (weights * mask).max(),
            "tis_truncated": ((weights > (config.tis_cap or float("inf"))) * mask).sum(),
            "sampler_masked": (mask - trusted).sum(),
            "ratio": (torch.exp((inputs.logprobs_BT.detach() - old).clamp(-20, 20)) * mask).sum(),
        }
        for name, number in details.items():  # verl reports means over the micro-batch; ours are sums
            metrics[name.removeprefix("actor/")] = torch.as_tensor(number) * tokens
        if inputs.reference_logprobs_BT is not None and config.kl_coef:
            kl = algos.kl_penalty(inputs.logprobs_BT, inputs.reference_logprobs_BT, config.kl_estimator)
            value = value + config.kl_coef * (kl * mask).sum() / inputs.batch_tokens * inputs.world_size
            metrics["kl_reference"] = (kl.detach() * mask).sum()
        return LossOutputs(value, metrics)

    return loss


def kl_per_token(logprobs: Sequence[float], reference_logprobs: Sequence[float], estimator: str) -> list[float]:
    """verl's estimate, by that name, of KL(policy ‖ reference) at each sampled token; in nats."""
    values = core_algos().kl_penalty(torch.tensor(logprobs), torch.tensor(reference_logprobs), estimator)
    return [float(x) for x in values]


def _within(config: PolicyLossConfig, gap_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 where the learner's and the sampler's probabilities agree well enough, else 0; `[samples, tokens]`."""
    if config.mask_level == "sequence":
        mean = (gap_BT * mask_BT).sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        gap_BT = mean.expand_as(gap_BT)
    inside = torch.ones_like(gap_BT)
    if config.mask_below is not None:
        inside = inside * (gap_BT >= math.log(config.mask_below))
    if config.mask_above is not None:
        inside = inside * (gap_BT <= math.log(config.mask_above))
    return inside


def _actor_config(config: PolicyLossConfig, inputs: LossInputs) -> Any:
    """verl's typed settings, with the whole batch's size so that micro-batch losses add up."""
    from verl.workers.config import FSDPActorConfig
    from verl.workers.config.actor import PolicyLossConfig as VerlPolicyLossConfig

    return FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        use_dynamic_bsz=True,
        clip_ratio=config.clip_low,
        clip_ratio_low=config.clip_low,
        clip_ratio_high=config.clip_high,
        clip_ratio_c=config.clip_c,
        loss_agg_mode=config.aggregation,
        policy_loss=VerlPolicyLossConfig(loss_mode=config.name, dro_beta=config.dro_beta),
        global_batch_info={
            "dp_size": inputs.world_size,
            "batch_num_tokens": inputs.batch_tokens,
            "global_batch_size": inputs.batch_samples,
            "loss_scale_factor": inputs.batch_longest,  # without it verl divides by the width of the micro-batch
        },
    )


def advantages(
    rewards_B: Sequence[float],
    groups_B: Sequence[int],
    estimator: str = "grpo",
    normalize_by_std: bool = True,
    tokens_B: Sequence[int] | None = None,
) -> list[float]:
    """One advantage per trajectory from its reward and group, by verl's estimator of that name.

    Only outcome estimators (one scalar for a trajectory) are supported here: the result is the same on every token. `tokens_B`,
    the tokens that the policy wrote, is read by `opo`, whose baseline weighs rewards by length, and by `reinforce_plus_plus` and
    its `_baseline`, which whiten over tokens; without it all are equally long.
    """
    algos = core_algos()
    known = sorted(algos.ADV_ESTIMATOR_REGISTRY)
    if estimator not in known:
        raise TaudojoError(f"algorithm.advantage={estimator} is not one of {', '.join(known)}{_nearest(estimator, known)}")
    lengths = torch.tensor(tokens_B if tokens_B is not None else [1] * len(rewards_B)).clamp(min=1)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).float()
    scores = torch.zeros_like(mask)
    scores[torch.arange(len(scores)), lengths - 1] = torch.tensor(rewards_B, dtype=torch.float32)
    settings: dict[str, Any] = {
        "token_level_rewards": scores,
        "response_mask": mask,
        "index": np.asarray(groups_B),
        "config": algos.AlgoConfig(gamma=1.0, norm_adv_by_std_in_grpo=normalize_by_std),
    }
    if estimator in ("grpo", "grpo_vectorized"):
        settings["norm_adv_by_std_in_grpo"] = normalize_by_std
    result: Tensor = algos.get_adv_estimator_fn(estimator)(**settings)[0]
    return [float(x) for x in result[:, 0]]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""
