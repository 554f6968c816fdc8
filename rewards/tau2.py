"""The official τ²-bench score of an episode, without an LLM.

Follows the evaluators of τ²-bench v1.0.1 (`src/tau2/evaluator/`): the reward is the product of the parts named in the task's
`reward_basis`. NL_ASSERTION, which needs an LLM judge, is left out of the product.

    termination     1 if the episode ended by a stop that τ² scores, else the reward is 0
    db              both databases after the replayed calls equal those after the gold actions
    env_assertion   the task's assertions hold on the replayed databases
    communicate     each piece of `communicate_info` is a substring of some line of the agent
    action          each gold action agrees with some call

Every part is computed and reported; one that is not in the basis has weight 0. The replay makes only the calls that change a
database, of agent and customer, and insists on the recorded answers. The gold actions run without `sync` between them, and one
that fails is passed over. Where the official evaluator raises (an assertion about a row that is not there), the reward is 0 and
a part `evaluator_error` is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from envs.errors import TaudojoError
from envs.toolkit import ToolKit
from envs.types import Action, Message, Task, Transcript
from rewards.breakdown import Component, RewardBreakdown
from rewards.matching import GoldAction, gold_actions, played

if TYPE_CHECKING:
    from envs.domain import Domain
    from envs.env import Env

_PARTS = {"DB": "db", "ENV_ASSERTION": "env_assertion", "COMMUNICATE": "communicate", "ACTION": "action", "NL_ASSERTION": None}


@dataclass(frozen=True)
class Verdict:
    """What the official evaluator says.

    parts: whether each part is met. basis: those that count. error: what it raised; then there is no official reward.
    predicted, gold: the databases that it compared, before any assertion; None where it compared none.
    """

    parts: Mapping[str, bool]
    basis: frozenset[str]
    error: str | None = None
    predicted: ToolKit | None = None
    gold: ToolKit | None = None

    @property
    def reward(self) -> float | None:
        """0 or 1; None where the evaluator raised. An episode that ended early is not looked at, so nothing raises there."""
        if not self.parts["termination"]:
            return 0.0
        return None if self.error else float(all(self.parts[name] for name in self.basis))

    def breakdown(self) -> RewardBreakdown:
        components = [Component(name, float(met), float(name in self.basis)) for name, met in self.parts.items()]
        if self.error:
            components.append(Component("evaluator_error", 1.0, 0.0))
        return RewardBreakdown(self.reward or 0.0, tuple(components))


def official_reward(task: Task, transcript: Transcript, env: Env) -> RewardBreakdown:
    """The product of the basis parts: 0 or 1."""
    live = env.toolkit if _stands_for_its_replay(env, task, transcript) else None
    return evaluate(task, transcript, env.domain, solo=env.solo, live=live).breakdown()


def evaluate(
    task: Task, transcript: Transcript, domain: Domain, *, solo: bool = False, live: ToolKit | None = None, keep: bool = False
) -> Verdict:
    """The official evaluator.

    Args:
        live: The databases that the replay would come to, where they are known already. They are only read.
        keep: Leave `predicted` as it was compared; else assertions may run on it.

    Raises:
        TaudojoError: the task's basis or initial state is nothing that can be evaluated.
    """
    basis = _basis(task)
    criteria = task.criteria
    stop = transcript.stop_reason
    episode = played(task, transcript)
    messages = (*task.history, *episode)
    parts = {
        "termination": stop is not None and stop.official,
        "db": True,
        "env_assertion": True,
        "communicate": communicates(task.communicate_info, messages),
        "action": actions_match(gold_actions(task), [m.action for m in messages if m.role == "tool" and m.action is not None]),
    }
    assertions = criteria.get("env_assertions")
    if criteria.get("actions") is None and assertions is None:
        return Verdict(parts, basis)

    gold = gold_state(task, domain)
    try:
        predicted = replay(task, episode, domain, solo=solo) if live is None else live
    except Exception as error:  # an answer that is not the recorded one, or a sync that fails: τ² raises too
        return Verdict({**parts, "db": False, "env_assertion": False}, basis, _told(error), gold=gold)
    parts["db"] = predicted.same_state(gold)
    if not assertions:
        return Verdict(parts, basis, None, predicted, gold)
    checked = predicted.fork() if keep or live is not None else predicted
    try:
        # Every assertion is run, even where an earlier one fails: a later one may raise.
        parts["env_assertion"] = all([checked.check(assertion) for assertion in assertions])
    except Exception as error:  # assertions are named by the task and may raise anything, as in τ²
        return Verdict({**parts, "env_assertion": False}, basis, _told(error), predicted, gold)
    return Verdict(parts, basis, None, predicted, gold)


def replay(task: Task, messages: Iterable[Message], domain: Domain, *, solo: bool = False) -> ToolKit:
    """The databases after an episode's lines, as τ²'s evaluator rebuilds them.

    Raises:
        ValueError: a call that changes a database answers otherwise than it did.
    """
    toolkit = domain.new_toolkit(task, solo=solo)
    for message in messages:
        if message.role == "tool" and message.action is not None:
            toolkit.replay(message.action, message.content or "")
    toolkit.sync()
    return toolkit


def do_nothing_matches(task: Task, domain: Domain) -> bool:
    """Whether an agent that never calls a tool passes the database check."""
    return domain.new_toolkit(task).same_state(gold_state(task, domain))


#: Gold end states that are kept of a domain; more than any task file has.
_KEPT_STATES = 4096

# The gold end state is the same for every agent. It is kept for as long as its domain lives, or until newer ones take its place.
_gold_states: WeakKeyDictionary[Domain, dict[str, tuple[Task, ToolKit]]] = WeakKeyDictionary()


def gold_state(task: Task, domain: Domain) -> ToolKit:
    """The databases after the gold actions; not to be written to."""
    known = _gold_states.setdefault(domain, {})
    found = known.get(task.id)
    # Two samplers may give different tasks the same id.
    if found is None or not _same_gold(found[0], task):
        known.pop(task.id, None)
        if len(known) >= _KEPT_STATES:
            del known[next(iter(known))]
        found = known[task.id] = (task, _play_gold(task, domain))
    return found[1]


def _play_gold(task: Task, domain: Domain) -> ToolKit:
    toolkit = domain.new_toolkit(task)
    for action in task.gold_actions:
        try:
            toolkit.run(action)
        except Exception:  # τ² passes over gold actions that fail; `rewards.audit` names them
            continue
    return toolkit


def _same_gold(known: Task, task: Task) -> bool:
    return known is task or (
        known.initial_state == task.initial_state and known.criteria.get("actions") == task.criteria.get("actions")
    )


def communicates(communicate_info: Sequence[str], messages: Sequence[Message]) -> bool:
    """Case-insensitive substring; commas are removed from the agent's lines, not from the information."""
    lines = [
        message.content.lower().replace(",", "")
        for message in messages
        if message.role == "assistant" and message.content and message.content.strip() and message.parse_failure is None
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


def _basis(task: Task) -> frozenset[str]:
    if task.raw.get("evaluation_criteria") is None:
        return frozenset({"termination"})
    unknown = [name for name in task.reward_basis if name not in _PARTS]
    if unknown:
        raise TaudojoError(f"Task {task.id} of {task.domain} is scored by {unknown[0]}, which this version cannot evaluate.")
    return frozenset({"termination", *(part for name in task.reward_basis if (part := _PARTS[name]))})


def _stands_for_its_replay(env: Env, task: Task, transcript: Transcript) -> bool:
    """Whether the environment's databases are those that a replay of the transcript would come to.

    They are where nothing but the calls that change a database changes it (no `sync`), and the lines are the environment's own.
    A number that is not equal to itself makes τ²'s comparison of answers fail, so that is left to the replay.
    """
    if env.task is not task or type(env.toolkit).sync is not ToolKit.sync:
        return False
    lines = transcript.messages
    return lines == env.transcript.messages and not any(m.role == "tool" and "NaN" in (m.content or "") for m in lines)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
