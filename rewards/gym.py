"""The Gymnasium face of an environment: text in, text out, the reward at the end.

>>> import gymnasium, rewards
>>> env = gymnasium.make("taudojo/retail-v0", task_id="0")
>>> observation, info = env.reset(seed=1)
>>> env.step('{"name": "get_order_details", "arguments": {"order_id": "#W2378156"}}')

An action is what the agent writes: a JSON object with `name` and `arguments`, a list of such objects, or
`{"tool_calls": [...]}` is a tool call; any other text is said to the user. An observation is what the agent reads next, one
`role: text` paragraph per message. `info` of `reset` has the policy and the tools; nothing here shows the gold actions.
"""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Text

from envs.data import open_source
from envs.domain import Domain, load_domain
from envs.env import Env
from envs.errors import TaudojoError
from envs.types import Action, AgentTurn, Message, StopReason, Task
from envs.users.base import User
from envs.users.registry import user_factory
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


@dataclass(frozen=True)
class Episodes:
    """Where episodes come from: all that environments of one kind share."""

    domain: Domain
    tasks: Mapping[str, Task]
    new_user: Callable[[], User | None]
    reward_fn: RewardFn
    limits: Mapping[str, int]

    def begin(self, luck: np.random.Generator, task_id: str | None = None) -> tuple[Env, tuple[Message, ...]]:
        """An episode of this task, or of one that `luck` draws, and what the agent reads first."""
        if task_id is None:
            task_id = tuple(self.tasks)[int(luck.integers(len(self.tasks)))]
        if task_id not in self.tasks:
            raise TaudojoError(f"Task {task_id!r} is not in this environment; it has {len(self.tasks)} tasks.")
        env = Env(self.domain, self.tasks[task_id], self.new_user(), **self.limits)
        return env, env.reset(seed=int(luck.integers(2**31)))


class TextEnv(gymnasium.Env[str, str]):
    """`Env` for Gymnasium. With several tasks, each reset draws one."""

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, episodes: Episodes, render_mode: str | None = None) -> None:
        self.observation_space = AnyText(10_000_000)
        self.action_space = AnyText(10_000)
        self.render_mode = render_mode
        self._episodes = episodes
        self._env: Env | None = None
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; `options={"task_id": ...}` chooses the task."""
        super().reset(seed=seed)
        task_id = (options or {}).get("task_id")
        self._env, messages = self._episodes.begin(self.np_random, None if task_id is None else str(task_id))
        self._over = False
        return _render(messages), {**_info(self._env), **_policy_and_tools(self._env)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one turn. The reward is 0 until the end. An episode that the customer left at once ends here, whatever is done."""
        env = self._env
        if env is None or self._over:
            raise gymnasium.error.ResetNeeded("The episode has not begun or is over; call reset() first.")
        observation = "" if env.done else _render(env.step(parse_action(action)))
        stop, reward, info = env.stop_reason, 0.0, _info(env)
        if stop is not None:
            self._over = True
            breakdown = self._episodes.reward_fn(env.task, env.transcript, env)
            reward = breakdown.total
            info["reward_components"] = {c.name: c.value for c in breakdown.components}
        return observation, reward, stop is not None and stop not in _TRUNCATED, stop in _TRUNCATED, info

    def render(self) -> str | None:
        """The conversation so far."""
        return _render(self._env.transcript.messages) if self._env and self.render_mode == "ansi" else None


def make(domain: str = "retail", *, render_mode: str | None = None, **settings: Any) -> TextEnv:
    """Build the environment behind `gymnasium.make("taudojo/<domain>-v0", ...)`; `settings` are those of `episodes_of`."""
    return TextEnv(episodes_of(domain, **settings), render_mode)


def episodes_of(
    domain: str,
    task_id: str | None = None,
    task: Task | None = None,
    split: str = "base",
    source: str = "packaged",
    path: str | Path | None = None,
    user: str | User = "scripted",
    user_settings: Mapping[str, Any] | None = None,
    reward_fn: RewardFn = official_reward,
    **limits: int,
) -> Episodes:
    """What an environment plays.

    Args:
        domain: The domain's name, or the dotted name of a module of your own.
        task_id: One official task; without it every reset draws from `split`.
        task: A task of your own instead.
        split: `train`, `test` or `base` (all official tasks).
        source, path: Where the τ² data is, as in `envs.data.open_source`.
        user, user_settings: The simulated user as in `envs.users.registry`: `scripted`, `llm`, `noisy`, `solo`; or a user of
            your own, copied for every episode.
        reward_fn: What an episode is worth; the official reward by default.
        limits: `max_steps`, `max_errors`, `max_repeats` of `envs.env.Env`.

    Raises:
        TaudojoError: there is no such domain, data, task or user.
    """
    loaded = load_domain(domain, open_source(source, path))
    tasks = [task] if task is not None else [t for t in loaded.tasks(split) if task_id is None or t.id == str(task_id)]
    if not tasks:
        raise TaudojoError(f"The split {split!r} of {domain} has no task {task_id!r}.")
    return Episodes(loaded, {t.id: t for t in tasks}, _users(loaded, user, user_settings or {}), reward_fn, limits)


def _users(domain: Domain, user: str | User, settings: Mapping[str, Any]) -> Callable[[], User | None]:
    if isinstance(user, str):
        return user_factory(user, settings, domain)
    prototype = user
    return lambda: copy.deepcopy(prototype)


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


def _info(env: Env) -> dict[str, Any]:
    stop = env.stop_reason
    return {"task_id": env.task.id, "domain": env.domain.name, "stop_reason": stop.value if stop else None}


def _policy_and_tools(env: Env) -> dict[str, Any]:
    """Copies: what Gymnasium hands out, its user may change."""
    domain = env.domain
    tools = domain.solo_tool_schemas if env.solo else domain.tool_schemas
    return {"policy": domain.solo_policy if env.solo else domain.policy, "tools": copy.deepcopy(tools)}


def _render(messages: tuple[Message, ...]) -> str:
    paragraphs = []
    for message in messages:
        paragraphs += [f"{message.role}: {message.content}"] if message.content is not None else []
        paragraphs += [f"{message.role} calls {a.name} {json.dumps(dict(a.arguments), default=str)}" for a in message.actions]
    return "\n\n".join(paragraphs)
