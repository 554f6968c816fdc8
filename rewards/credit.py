"""Which turn earned what: the shaped reward of an episode, spread over the agent's turns.

What `rewards/actions.py` sums over an episode, told apart by the turn that brought it about. With n gold actions (at least 1) and
the weights' maximum M, a call earns, each divided by n · M:

    + name        if it is the partner of a gold action of its name
    + arguments   if it equals a gold action
    + order       if it stands on the longest common subsequence of tool names (the earliest such calls)
    + wrong, missing, extra_read, malformed   as the action reward charges them

Where there are no gold actions, the last turn earns 1 and the first call that writes −1. A customer's own calls count for the
turn before them. What belongs to no call (the official score, other rewards, the end of the episode, clipping) comes with the
last turn, so that the turns' rewards always add up to the episode's.

    credit = turn_credit(config.reward)
    credit(task, transcript, env, total=0.75)       # [0.0, 0.25, 0.5]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from envs.types import GREETING, Message, Task, Transcript
from rewards.actions import ActionWeights
from rewards.matching import Call, gold_actions, match, played
from rewards.schema import agent_tools, agent_writes, missing_arguments

if TYPE_CHECKING:
    from envs.env import Env

#: Task, transcript, environment and the episode's total → one number for each of the agent's turns.
TurnCredit = Callable[[Task, Transcript, "Env", float], list[float]]


def turn_credit(config: Mapping[str, Any]) -> TurnCredit:
    """The credit that goes with a reward configuration (`rewards/compose.py`), which must have `actions`."""
    settings = dict(config["actions"])
    share = float(settings.pop("weight"))
    weights = ActionWeights(**settings)
    return lambda task, transcript, env, total: turn_rewards(task, transcript, env, total, weights, share)


def turn_rewards(
    task: Task, transcript: Transcript, env: Env, total: float, weights: ActionWeights | None = None, share: float = 1.0
) -> list[float]:
    """What each of the agent's turns earned, in order; their sum is `total`. `share` is the action reward's weight in it."""
    weights = weights or ActionWeights()
    gold = gold_actions(task, solo=env.solo)
    lines = _without_greeting(task, transcript, env)
    turns = sum(line.role == "assistant" for line in lines)
    if turns == 0:
        return []
    calls: list[Call] = []
    turn_of: list[int] = []
    earned = [0.0] * turns
    now = 0
    for line in lines:
        if line.role == "assistant":
            now += 1
            earned[now - 1] += weights.malformed_penalty * (line.parse_failure is not None)
        elif line.role == "tool" and line.action is not None:
            calls.append(Call(line.action, line.error))
            turn_of.append(max(0, now - 1))

    pairs = match(gold, calls, task.domain)
    equal, named = {c for _, c in pairs.exact}, {c for _, c in pairs.named}
    ordered = common([(g.action.requestor, g.action.name) for g in gold], [(c.action.requestor, c.action.name) for c in calls])
    tools, writes = agent_tools(env), agent_writes(env)
    wrote = [c for c, call in enumerate(calls) if call.action.name in writes and not call.error]
    charged = bool(gold or wrote)  # with no gold actions, what wrote nothing costs nothing
    for c, call in enumerate(calls):
        value = weights.name * (c in named) + weights.arguments * (c in equal) + weights.order * (c in ordered)
        action = call.action
        if action.requestor == "assistant":
            if c not in named:
                is_wrong = action.name in writes or action.name not in tools
                value += (weights.wrong if charged else 0.0) if is_wrong else weights.extra_read_penalty
            if c not in equal and charged and action.name in tools and missing_arguments(action, tools[action.name]):
                value += weights.missing
        earned[turn_of[c]] += value
    if not gold and wrote:
        earned[turn_of[wrote[0]]] -= weights.maximum
    scale = share / (max(len(gold), 1) * weights.maximum)
    result = [scale * value for value in earned]
    result[-1] += total - sum(result)
    return result


def common(gold: Sequence[Any], calls: Sequence[Any]) -> set[int]:
    """Indices of the calls on the longest common subsequence; of several, the one whose calls come earliest."""
    lengths = [[0] * (len(calls) + 1) for _ in range(len(gold) + 1)]
    for g in reversed(range(len(gold))):
        for c in reversed(range(len(calls))):
            same = gold[g] == calls[c]
            lengths[g][c] = 1 + lengths[g + 1][c + 1] if same else max(lengths[g + 1][c], lengths[g][c + 1])
    found: set[int] = set()
    g = c = 0
    while g < len(gold) and c < len(calls):
        if gold[g] == calls[c]:
            found.add(c)
            g, c = g + 1, c + 1
        elif lengths[g + 1][c] >= lengths[g][c + 1]:
            g += 1
        else:
            c += 1
    return found


def _without_greeting(task: Task, transcript: Transcript, env: Env) -> tuple[Message, ...]:
    """The lines of the episode itself. The greeting is said for the agent, where a conversation begins with it."""
    lines = played(task, transcript)
    greeted = not task.history and not env.solo and bool(lines) and lines[0] == Message("assistant", GREETING)
    return lines[1:] if greeted else lines
