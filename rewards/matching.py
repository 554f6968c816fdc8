"""When a predicted call is a gold action, and which call is whose partner.

Two calls are *equal* when requestor and tool name are equal and the arguments are:

- the order of dictionary keys never counts;
- a list of ids is a multiset; two lists that a tool pairs (`item_ids` with `new_item_ids`) are a multiset of pairs;
- a call that the tool accepted may further differ in what the tool ignores: 3, 3.0 and "3"; an order id with or without its
  `#` or `#W`; letter case and white space in the arguments that the tool compares without them. A call that the tool refused
  gets no such benefit: "W2378156" is not a right order id where the tool says that it found no such order;
- where the task states `compare_args` for a gold action, only those arguments are compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from envs.types import Action, Message, Task, Transcript


@dataclass(frozen=True)
class ArgumentRules:
    """What a domain's tools ignore in their arguments: tool name -> argument names."""

    case_blind: Mapping[str, frozenset[str]] = field(default_factory=dict)
    space_blind: Mapping[str, frozenset[str]] = field(default_factory=dict)
    paired: tuple[tuple[str, str], ...] = ()


RULES: dict[str, ArgumentRules] = {
    "retail": ArgumentRules(
        case_blind={
            "find_user_id_by_email": frozenset({"email"}),
            "find_user_id_by_name_zip": frozenset({"first_name", "last_name"}),
        },
        space_blind={"calculate": frozenset({"expression"})},
        paired=(("item_ids", "new_item_ids"),),
    ),
    # Lists of flights, passengers and payments are stored as they come: their order counts.
    "airline": ArgumentRules(space_blind={"calculate": frozenset({"expression"})}),
    "telecom": ArgumentRules(
        case_blind={
            "get_customer_by_name": frozenset({"full_name"}),
            "grant_app_permission": frozenset({"permission"}),
        },
    ),
}

_ORDER_ID = re.compile(r"#?W?(\d+)")


@dataclass(frozen=True)
class Call:
    """A call that was made, and whether the tool refused it."""

    action: Action
    error: bool = False


@dataclass(frozen=True)
class GoldAction:
    """An action of the task's reference solution; `compare_args` None compares all arguments."""

    action: Action
    compare_args: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Matching:
    """Partners, as (index of gold action, index of call).

    exact: as many equal pairs as can be; named: those, and then as many pairs as can be that agree in the name only;
    ordered: length of the longest common subsequence of the names; in_order: the calls contain the gold actions in their order.
    """

    exact: tuple[tuple[int, int], ...]
    named: tuple[tuple[int, int], ...]
    ordered: int
    in_order: bool


def played(task: Task, transcript: Transcript) -> tuple[Message, ...]:
    """The lines after the task's message history: what happened in the episode itself."""
    history, messages = task.history, transcript.messages
    for start in (0, 1):  # a solo agent's ticket stands before the history
        if history and messages[start : start + len(history)] == history:
            return messages[start + len(history) :]
    return messages


def executed_calls(task: Task, transcript: Transcript) -> tuple[Call, ...]:
    """The episode's calls, the customer's own among them."""
    return tuple(Call(m.action, m.error) for m in played(task, transcript) if m.role == "tool" and m.action is not None)


def gold_actions(task: Task, *, solo: bool = False) -> tuple[GoldAction, ...]:
    """The task's reference solution. An agent that works alone does the customer's part too."""
    gold = (
        GoldAction(Action.from_json(raw), None if raw.get("compare_args") is None else tuple(raw["compare_args"]))
        for raw in task.criteria.get("actions") or ()
    )
    return tuple(replace(g, action=replace(g.action, requestor="assistant")) if solo else g for g in gold)


def match(gold: Sequence[GoldAction], calls: Sequence[Call], domain: str) -> Matching:
    """Pair gold actions with calls, each used at most once."""
    equal = _equality(gold, calls, RULES.get(domain, ArgumentRules()))
    gold_names = [_name(g.action) for g in gold]
    call_names = [_name(c.action) for c in calls]
    exact = _maximum_matching(len(gold), len(calls), equal)
    return Matching(
        exact=tuple(sorted(exact.items())),
        named=tuple(sorted(_add_named(exact, gold_names, call_names).items())),
        ordered=lcs_length(gold_names, call_names),
        in_order=_is_subsequence(len(gold), len(calls), equal),
    )


def lcs_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def _name(action: Action) -> tuple[str, str]:
    return (action.requestor, action.name)


def _equality(gold: Sequence[GoldAction], calls: Sequence[Call], rules: ArgumentRules) -> Callable[[int, int], bool]:
    @cache
    def gold_form(g: int, forgiving: bool) -> Hashable:
        return canonical(gold[g].action, rules, forgiving=forgiving, only=gold[g].compare_args)

    @cache
    def call_form(c: int, forgiving: bool, only: tuple[str, ...] | None) -> Hashable:
        try:
            return canonical(calls[c].action, rules, forgiving=forgiving, only=only)
        except RecursionError:  # nested deeper than Python follows, and than any gold action
            return ("too deep", c)

    @cache
    def equal(g: int, c: int) -> bool:
        if _name(gold[g].action) != _name(calls[c].action):
            return False
        only = gold[g].compare_args
        if gold_form(g, False) == call_form(c, False, only):
            return True
        return not calls[c].error and gold_form(g, True) == call_form(c, True, only)

    return equal


def canonical(action: Action, rules: ArgumentRules, *, forgiving: bool = False, only: Sequence[str] | None = None) -> Hashable:
    """A hashable form of the arguments: equal forms, equal arguments. `forgiving` drops what tools ignore."""
    arguments = dict(action.arguments)
    forms: dict[str, Hashable] = {}
    for first, second in rules.paired:
        a, b = arguments.get(first), arguments.get(second)
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b) and only is None:
            pairs = [(_form(x, forgiving), _form(y, forgiving)) for x, y in zip(a, b, strict=True)]
            forms[first], forms[second] = ("pairs", tuple(sorted(pairs, key=repr))), ("paired with", first)
    for key, value in arguments.items():
        if key in forms or (only is not None and key not in only):
            continue
        if key.endswith("_ids") and isinstance(value, list | tuple):
            forms[key] = ("ids", tuple(sorted((_form(v, forgiving) for v in value), key=repr)))
            continue
        if forgiving and isinstance(value, str):
            value = value.lower() if key in rules.case_blind.get(action.name, ()) else value
            value = "".join(value.split()) if key in rules.space_blind.get(action.name, ()) else value
            if key == "order_id" and (order := _ORDER_ID.fullmatch(value)):
                value = order.group(1)
        forms[key] = _form(value, forgiving)
    return frozenset(forms.items())


def _form(value: Any, forgiving: bool) -> Hashable:
    if isinstance(value, bool) or value is None:
        return ("constant", value)
    if isinstance(value, int | float):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return ("text", str(value)) if forgiving else ("number", str(value))
    if isinstance(value, Mapping):
        return ("object", frozenset((str(k), _form(v, forgiving)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return ("list", tuple(_form(v, forgiving) for v in value))
    return ("text", str(value))


def _maximum_matching(n_gold: int, n_calls: int, equal: Callable[[int, int], bool]) -> dict[int, int]:
    """Maximum bipartite matching (augmenting paths): gold index -> call index.

    Greedy would do for plain equality; `compare_args` makes one call equal to gold actions that differ.
    """
    owner: dict[int, int] = {}

    def place(g: int, seen: set[int]) -> bool:
        for c in range(n_calls):
            if c not in seen and equal(g, c):
                seen.add(c)
                if c not in owner or place(owner[c], seen):
                    owner[c] = g
                    return True
        return False

    for g in range(n_gold):
        place(g, set())
    return {g: c for c, g in owner.items()}


def _add_named(exact: Mapping[int, int], gold_names: Sequence[Hashable], call_names: Sequence[Hashable]) -> dict[int, int]:
    named = dict(exact)
    free = [c for c in range(len(call_names)) if c not in set(exact.values())]
    for g, name in enumerate(gold_names):
        if g not in named and (partner := next((c for c in free if call_names[c] == name), None)) is not None:
            named[g] = partner
            free.remove(partner)
    return named


def _is_subsequence(n_gold: int, n_calls: int, equal: Callable[[int, int], bool]) -> bool:
    g = 0
    for c in range(n_calls):
        if g < n_gold and equal(g, c):
            g += 1
    return g == n_gold
