"""The Gymnasium face of an environment: text in, text out, the reward at the end.

>>> env = gymnasium.make("taudojo/retail-v0", task_id="0")
>>> observation, info = env.reset(seed=1)
>>> env.step('{"name": "get_order_details", "arguments": {"order_id": "#W2378156"}}')

An action is what the agent writes: a JSON object with `name` and `arguments`, a list of such objects, or
`{"tool_calls": [...]}` is a tool call; any other text is said to the user. An observation is what the agent reads next, one
`role: text` paragraph per message. `info` of `reset` has the policy and the tools; nothing here shows the gold actions.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from envs.data import open_source
from envs.domain import load_domain
from envs.env import Env
from envs.errors import TaudojoError
from envs.types import Action, AgentTurn, Message, StopReason, Task
from envs.users.base import User
from envs.users.scripted import ScriptedUser
from rewards.breakdown import RewardFn
from rewards.tau2 import official_reward

#: Endings that cut an episode short, as opposed to endings that its own events brought about.
_TRUNCATED = {
    StopReason.MAX_STEPS,
    StopReason.LOOP,
    StopReason.CONTEXT_FULL,
    StopReason.TIMEOUT,
    StopReason.CANCELLED,
    StopReason.USER_ERROR,
    StopReason.ENGINE_ERROR,
}


class AnyText(Text):
    """Strings of any characters; samples are printable ASCII."""

    def __init__(self, max_length: int) -> None:
        super().__init__(max_length, min_length=0, charset=string.printable)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length


class TextEnv(gymnasium.Env[str, str]):
    """`Env` for Gymnasium. With several tasks, each reset draws one."""

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, env_of: dict[str, Env], reward_fn: RewardFn, render_mode: str | None = None) -> None:
        self.observation_space = AnyText(10_000_000)
        self.action_space = AnyText(10_000)
        self.render_mode = render_mode
        self._env_of = env_of
        self._reward_fn = reward_fn
        self._env: Env | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; `options={"task_id": ...}` chooses the task."""
        super().reset(seed=seed)
        task_id = str((options or {}).get("task_id", "")) or list(self._env_of)[int(self.np_random.integers(len(self._env_of)))]
        if task_id not in self._env_of:
            raise TaudojoError(f"Task {task_id!r} is not in this environment; it has {len(self._env_of)} tasks.")
        self._env = self._env_of[task_id]
        messages = self._env.reset(seed=int(self.np_random.integers(2**31)))
        return _render(messages), {**self._info(), "policy": self._env.domain.policy, "tools": self._env.domain.tool_schemas}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one turn. The reward is 0 until the end."""
        if self._env is None or self._env.done:
            raise gymnasium.error.ResetNeeded("The episode has not begun or is over; call reset() first.")
        observation = _render(self._env.step(parse_action(action)))
        stop, reward, info = self._env.stop_reason, 0.0, self._info()
        if stop is not None:
            breakdown = self._reward_fn(self._env.task, self._env.transcript, self._env)
            reward = breakdown.total
            info["reward_components"] = {c.name: c.value for c in breakdown.components}
        return observation, reward, stop is not None and stop not in _TRUNCATED, stop in _TRUNCATED, info

    def render(self) -> str | None:
        """The conversation so far."""
        return _render(self._env.transcript.messages) if self._env and self.render_mode == "ansi" else None

    def _info(self) -> dict[str, Any]:
        assert self._env is not None
        stop = self._env.stop_reason
        return {"task_id": self._env.task.id, "domain": self._env.domain.name, "stop_reason": stop.value if stop else None}


def make(
    domain: str = "retail",
    task_id: str | None = None,
    task: Task | None = None,
    split: str = "base",
    source: str = "packaged",
    path: str | Path | None = None,
    user: User | None = None,
    reward_fn: RewardFn = official_reward,
    render_mode: str | None = None,
    **limits: int,
) -> TextEnv:
    """Build the environment behind `gymnasium.make("taudojo/<domain>-v0", ...)`.

    Args:
        domain: The domain's name.
        task_id: One official task; without it every reset draws from `split`.
        task: A task of your own instead.
        split: `train`, `test` or `base` (all official tasks).
        source, path: Where the τ² data is, as in `envs.data.open_source`.
        user: The simulated user; a scripted one by default.
        reward_fn: What an episode is worth; the official reward by default.
        limits: `max_steps`, `max_errors`, `max_repeats` of `envs.env.Env`.
    """
    loaded = load_domain(domain, open_source(source, path))
    tasks = [task] if task is not None else [t for t in loaded.tasks(split) if task_id is None or t.id == str(task_id)]
    if not tasks:
        raise TaudojoError(f"The split {split!r} of {domain} has no task {task_id!r}.")
    user = user or ScriptedUser()
    return TextEnv({t.id: Env(loaded, t, user, **limits) for t in tasks}, reward_fn, render_mode)


def parse_action(text: str) -> AgentTurn:
    """Read an action string; JSON that is not a call is a parse failure, all other text is speech."""
    stripped = text.strip()
    if not stripped.startswith(("{", "[{")):
        return AgentTurn(content=text)
    try:
        raw = json.loads(stripped)
        calls = raw.get("tool_calls", [raw]) if isinstance(raw, dict) else raw
        return AgentTurn(actions=tuple(_call(call) for call in calls))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return AgentTurn(content=text, parse_failure=f"not a tool call: {error}")


def _call(raw: dict[str, Any]) -> Action:
    raw = raw.get("function", raw)
    arguments = raw.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(raw["name"], str) or not isinstance(arguments, dict):
        raise TypeError("name must be a string and arguments an object")
    return Action(raw["name"], arguments)


def _render(messages: tuple[Message, ...]) -> str:
    paragraphs = []
    for message in messages:
        paragraphs += [f"{message.role}: {message.content}"] if message.content is not None else []
        paragraphs += [f"{message.role} calls {a.name} {json.dumps(dict(a.arguments), default=str)}" for a in message.actions]
    return "\n\n".join(paragraphs)
