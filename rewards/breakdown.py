"""What a reward answers: a total and the named parts that it was made of.

A reward is a pure function of a finished episode:

    def politeness(task: Task, transcript: Transcript, env: Env) -> RewardBreakdown:
        thanked = float(any("thank" in (m.content or "").lower() for m in transcript.messages if m.role == "assistant"))
        return RewardBreakdown.of(Component("thanked", thanked, 1.0))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envs.types import Task, Transcript

if TYPE_CHECKING:
    from envs.env import Env


@dataclass(frozen=True)
class Component:
    """One part of a reward. How value and weight enter the total is the reward's own affair and stands in its docstring."""

    name: str
    value: float
    weight: float


@dataclass(frozen=True)
class RewardBreakdown:
    """The number that is trained on or reported, and where it came from."""

    total: float
    components: tuple[Component, ...] = ()

    @classmethod
    def of(cls, *components: Component) -> RewardBreakdown:
        """The plain weighted sum of its components."""
        return cls(sum(c.value * c.weight for c in components), components)

    def value(self, name: str) -> float:
        """The value of one component."""
        for component in self.components:
            if component.name == name:
                return component.value
        raise KeyError(f"no reward component {name!r}; there are {[c.name for c in self.components]}")

    def to_json(self) -> dict[str, Any]:
        return {"total": self.total, "components": {c.name: {"value": c.value, "weight": c.weight} for c in self.components}}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> RewardBreakdown:
        return cls(raw["total"], tuple(Component(name, c["value"], c["weight"]) for name, c in raw["components"].items()))


RewardFn = Callable[[Task, Transcript, "Env"], RewardBreakdown]
