"""Mix named rewards by weight.

    actions:  {weight: 1.0, wrong: -0.3}     the shaped reward; further keys are its `ActionWeights`
    official: {weight: 0.0}                  the τ²-bench score; with weight 0 it is only reported

The total is the weighted sum. Each part is a component of its own, and its own components follow it as `part/name`; those explain
the part and do not enter the total again.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from envs.errors import TaudojoError
from envs.types import Task, Transcript
from rewards.actions import ActionWeights, action_reward
from rewards.breakdown import Component, RewardBreakdown, RewardFn
from rewards.tau2 import official_reward

if TYPE_CHECKING:
    from envs.env import Env


def _build_actions(settings: Mapping[str, float]) -> RewardFn:
    _check_names("reward.actions", settings, [f.name for f in fields(ActionWeights)])
    weights = ActionWeights(**settings)
    return lambda task, transcript, env: action_reward(task, transcript, env, weights)


def _build_official(settings: Mapping[str, float]) -> RewardFn:
    _check_names("reward.official", settings, [])
    return official_reward


#: Name in the configuration -> builder that is given the settings beside `weight`. A new reward is one line here.
REWARDS: dict[str, Callable[[Mapping[str, float]], RewardFn]] = {"actions": _build_actions, "official": _build_official}


def build_reward(config: Mapping[str, Any]) -> RewardFn:
    """The reward that a configuration describes; raises `TaudojoError` for names and weights that it cannot use."""
    _check_names("reward", config, list(REWARDS))
    if not config:
        raise TaudojoError(f"The reward configuration names no reward; choose among {', '.join(REWARDS)}.")
    parts: list[tuple[str, float, RewardFn]] = []
    for name, raw in config.items():
        if not isinstance(raw, Mapping) or "weight" not in raw:
            raise TaudojoError(f"reward.{name} needs a weight, as in `{name}: {{weight: 1.0}}`.")
        settings = {key: _number(f"reward.{name}.{key}", value) for key, value in raw.items()}
        parts.append((name, settings.pop("weight"), REWARDS[name](settings)))

    def reward(task: Task, transcript: Transcript, env: Env) -> RewardBreakdown:
        components: list[Component] = []
        total = 0.0
        for name, weight, part in parts:
            breakdown = part(task, transcript, env)
            total += weight * breakdown.total
            components.append(Component(name, breakdown.total, weight))
            components += [Component(f"{name}/{c.name}", c.value, c.weight) for c in breakdown.components]
        return RewardBreakdown(total, tuple(components))

    return reward


def _check_names(where: str, given: Iterable[str], known: list[str]) -> None:
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            hint = f"did you mean {where}.{nearest[0]}?" if nearest else "it takes no settings but weight."
            raise TaudojoError(f"{where}.{name} is not known; {hint}")


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TaudojoError(f"{where} is {value!r}; give it a number.")
    return float(value)
