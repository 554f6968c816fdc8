"""The shaped reward: predicted against gold actions, in [-1, 1].

With n gold actions, pairs of equal and of same-named calls as `rewards/matching.py` defines them:

    name          gold actions whose tool was called                                                  / n    × 1.0
    arguments     gold actions that a call equals                                                     / n    × 0.5
    order         longest common subsequence of the tool names                                        / n    × 0.5
    wrong         write calls and unknown tools that no gold action has the name of                   / n    × -0.3
    missing       calls without an equal gold action that lack a required argument                    / n    × -0.4
    extra_read    read-only calls that no gold action has the name of                                 / n    × 0
    malformed     turns that did not parse                                                            / n    × 0
    unofficial_stop   1 if the agent brought about an ending that τ²-bench does not score                    × 0

The total is the weighted sum divided by its maximum (the positive weights) and clipped. A task without gold actions is worth 1 if
nothing was written (less the optional penalties), and at most 0 otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from envs.errors import TaudojoError
from envs.types import Action, Task, Transcript
from rewards.breakdown import Component, RewardBreakdown
from rewards.matching import executed_calls, gold_actions, match
from rewards.schema import agent_tools, agent_writes, missing_arguments

if TYPE_CHECKING:
    from envs.env import Env


@dataclass(frozen=True)
class ActionWeights:
    """What each part is worth. The first three earn, the others cost and are at most 0."""

    name: float = 1.0
    arguments: float = 0.5
    order: float = 0.5
    wrong: float = -0.3
    missing: float = -0.4
    extra_read_penalty: float = 0.0
    malformed_penalty: float = 0.0
    unofficial_stop_penalty: float = 0.0

    def __post_init__(self) -> None:
        earning = ("name", "arguments", "order")
        for field in fields(self):
            weight = getattr(self, field.name)
            if field.name in earning and not weight >= 0:
                raise TaudojoError(f"Action reward: {field.name} is {weight}; it earns, so give it a weight of 0 or more.")
            if field.name not in earning and not weight <= 0:
                raise TaudojoError(f"Action reward: {field.name} is {weight}; it costs, so give it a weight of 0 or less.")
        if not self.maximum > 0:
            raise TaudojoError(
                "Action reward: name, arguments and order are all 0, so there is nothing to earn; raise one of them."
            )

    @property
    def maximum(self) -> float:
        """The weighted sum of a perfect episode."""
        return self.name + self.arguments + self.order


def action_reward(task: Task, transcript: Transcript, env: Env, weights: ActionWeights | None = None) -> RewardBreakdown:
    """How near the calls came to the gold actions; the default weights are `ActionWeights()`."""
    weights = weights or ActionWeights()
    gold = gold_actions(task, solo=env.solo)
    calls = executed_calls(task, transcript)
    pairs = match(gold, calls, task.domain)
    tools, writes = agent_tools(env), agent_writes(env)

    equal = {c for _, c in pairs.exact}
    named = {c for _, c in pairs.named}
    extra = [call.action for c, call in enumerate(calls) if c not in named and call.action.requestor == "assistant"]
    wrong = sum(a.name in writes or a.name not in tools for a in extra)
    extra_read = len(extra) - wrong
    missing = sum(c not in equal and _lacks_arguments(call.action, tools) for c, call in enumerate(calls))
    stop = transcript.stop_reason
    gave_up = stop is not None and not stop.official and stop.agent_at_fault

    if gold:
        earned = [
            Component("name", len(pairs.named) / len(gold), weights.name),
            Component("arguments", len(pairs.exact) / len(gold), weights.arguments),
            Component("order", pairs.ordered / len(gold), weights.order),
        ]
    else:
        wrote = any(call.action.name in writes and not call.error for call in calls)
        earned = [Component("nothing_written", float(not wrote), weights.maximum)]
        # What was tried and refused, and tools that do not exist, wrote nothing: with no gold actions they cost nothing.
        wrong, missing = (wrong, missing) if wrote else (0, 0)

    n = max(len(gold), 1)
    components = (
        *earned,
        Component("wrong", wrong / n, weights.wrong),
        Component("missing", missing / n, weights.missing),
        Component("extra_read", extra_read / n, weights.extra_read_penalty),
        Component("malformed", transcript.parse_failures / n, weights.malformed_penalty),
        Component("unofficial_stop", float(gave_up), weights.unofficial_stop_penalty),
    )
    total = sum(c.value * c.weight for c in components) / weights.maximum
    return RewardBreakdown(max(-1.0, min(1.0, total)), components)


def _lacks_arguments(action: Action, tools: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the agent called a tool of its own without a required argument."""
    return action.requestor == "assistant" and action.name in tools and bool(missing_arguments(action, tools[action.name]))
