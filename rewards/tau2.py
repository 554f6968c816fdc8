"""The official τ²-bench score of an episode, without an LLM.

Follows the evaluators of τ²-bench v1.0.1 (`src/tau2/evaluator/`): the reward is the product of the parts named in the task's
`reward_basis`. NL_ASSERTION, which needs an LLM judge, is left out of the product.

    termination   1 if the episode ended by a stop that τ² scores, else the reward is 0
    db            the database after the predicted calls equals the one after the gold actions
    communicate   each piece of `communicate_info` is a substring of some line of the agent
    action        each gold action agrees with some call

Every part is computed and reported; one that is not in the basis has weight 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from envs.errors import TaudojoError
from envs.types import Action, Task, Transcript
from rewards.breakdown import Component, RewardBreakdown
from rewards.matching import GoldAction, gold_actions

if TYPE_CHECKING:
    from envs.domain import Domain
    from envs.env import Env
    from envs.toolkit import ToolKit

_PARTS = {"DB": "db", "COMMUNICATE": "communicate", "ACTION": "action", "NL_ASSERTION": None}


def official_reward(task: Task, transcript: Transcript, env: Env) -> RewardBreakdown:
    """The product of the basis parts: 0 or 1."""
    unknown = [name for name in task.reward_basis if name not in _PARTS]
    if unknown:
        raise TaudojoError(f"Task {task.id} of {task.domain} is scored by {unknown[0]}, which this version cannot evaluate.")
    values = {
        "termination": transcript.stop_reason is not None and transcript.stop_reason.official,
        "db": db_matches(task, transcript.calls, env.domain),
        "communicate": communicates(task.communicate_info, transcript),
        "action": actions_match(gold_actions(task), transcript.calls),
    }
    basis = {"termination"}
    if task.raw.get("evaluation_criteria") is not None:
        basis |= {part for name in task.reward_basis if (part := _PARTS[name])}
    return RewardBreakdown(
        total=float(all(values[name] for name in basis)),
        components=tuple(Component(name, float(value), float(name in basis)) for name, value in values.items()),
    )


def db_matches(task: Task, calls: Iterable[Action], domain: Domain) -> bool:
    """Whether the calls leave the database that the gold actions leave. Tasks that state no gold actions match always."""
    if task.criteria.get("actions") is None:
        return True
    return replay((a for a in calls if a.name in domain.write_tools), domain).same_state(gold_state(task, domain))


def do_nothing_matches(task: Task, domain: Domain) -> bool:
    """Whether an agent that never calls a tool passes the database check."""
    return db_matches(task, (), domain)


def replay(calls: Iterable[Action], domain: Domain) -> ToolKit:
    """A fresh toolkit after the calls. Calls that fail change nothing."""
    toolkit = domain.new_toolkit()
    for call in calls:
        toolkit.use(call)
    return toolkit


@dataclass(frozen=True)
class _GoldState:
    actions: tuple[Action, ...]
    toolkit: ToolKit


# The gold end state is the same for every agent. It is kept for as long as its domain lives.
_gold_states: WeakKeyDictionary[Domain, dict[str, _GoldState]] = WeakKeyDictionary()


def gold_state(task: Task, domain: Domain) -> ToolKit:
    """The toolkit after the gold actions; not to be written to."""
    known = _gold_states.setdefault(domain, {})
    state = known.get(task.id)
    # Two samplers may give different tasks the same id.
    if state is None or state.actions != task.gold_actions:
        state = known[task.id] = _GoldState(task.gold_actions, replay(task.gold_actions, domain))
    return state.toolkit


def communicates(communicate_info: Sequence[str], transcript: Transcript) -> bool:
    """Case-insensitive substring; commas are removed from the agent's lines, not from the information."""
    lines = [
        message.content.lower().replace(",", "")
        for message in transcript.messages
        if message.role == "assistant" and message.content and message.parse_failure is None
    ]
    return all(any(info.lower() in line for line in lines) for info in communicate_info)


def actions_match(gold: Sequence[GoldAction], calls: Sequence[Action]) -> bool:
    """Whether each gold action agrees with some call. One call may serve several gold actions; the requestor is ignored."""
    return all(any(_agrees(g, call) for call in calls) for g in gold)


def _agrees(gold: GoldAction, call: Action) -> bool:
    if gold.action.name != call.name:
        return False
    # Without compare_args only the keys of the predicted call are compared: what it leaves out is not missed.
    keys = call.arguments.keys() if gold.compare_args is None else gold.compare_args
    want, have = gold.action.arguments, call.arguments
    return all((key in want) == (key in have) and (key not in have or want[key] == have[key]) for key in keys)
