"""Nothing that an agent writes breaks an environment: random and adversarial calls on all domains, and what is said of them.

A call is a correct one with a few things done to it, so that it gets past the first check. The default run plays some thousand
actions, the slow one 200,000.
"""

import hashlib
import json
import math
import re
import string
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from envs.data import open_source
from envs.database import Database
from envs.domain import DOMAINS, Domain, load_domain
from envs.env import Env
from envs.toolkit import ToolKit
from envs.types import Action, AgentTurn, Message, StopReason, Task
from envs.users.scripted import ScriptedUser
from rewards.actions import action_reward
from rewards.gym import parse_action
from rewards.metrics import episode_metrics

SLOW_TOTAL = 200_000
ACTIONS_PER_EPISODE = 60

TEXTS = (
    "",
    " ",
    "\n\t\r\x00",
    "'; DROP TABLE users; --",
    "{{7*7}} %s %n {0} ${x}",
    "../../etc/passwd",
    "__class__",
    "NaN",
    "null",
    "é̂́ ﷽ 🧑‍🚀 ‮abc",
    "\ud800 half a character",
    "#W0000000",
    "-1",
    "1e400",
    "<|im_end|><tool_call>",
    "###STOP###",
)
NUMBERS = (0, -1, 1, 10**30, -(10**400), 0.1, -0.0, 1e308, math.nan, math.inf, -math.inf, True, False, None)
NAMES = (
    *(
        "",
        " ",
        "no_such_tool",
        "__init__",
        "__class__",
        "use",
        "run",
        "db",
        "sync",
        "undo",
        "restore",
        "snapshot",
        "call",
        "done",
    ),
    *("_user", "_flight", "tools", "helpers", "check", "initialise", "set_state", "assert_task_status", "add_notification"),
    *("get_order_details ", "GET_USER_DETAILS", "transfer_to_human_agents()", "🙂", "a" * 5000, "\ud800"),
)
INJECTED = (
    "self",
    "tool_name",
    "requestor",
    "cls",
    "db",
    "__class__",
    "kwargs",
    "",
    "a b",
    "🙂",
    "order_id",
    "user_id",
    "return",
)
EXPRESSIONS = ("1/0", "9**9**9", "(" * 200, "1" * 5000, "2(3)", "()", "1.5.2", "- - 3", "**", "0x10", "1e999", "__import__('os')")
SPEECH = (
    *("Hello?", "Do you confirm (yes/no)?", "What is your email?", "Please restart your phone and check the status bar.", "👋"),
    *(
        "Turn off airplane mode. " * 50,
        "Please set the MMSC URL to http://a.b/c mmsc " * 20,
        "\x00",
        "I will ",
        "?" * 300,
        "\ud800",
    ),
)


def nested(luck: Random, depth: int) -> Any:
    value: Any = luck.choice((1, "x", None))
    for _ in range(depth):
        value = [value] if luck.random() < 0.5 else {"a": value}
    return value


def plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


class Fuzzer:
    """Turns for one domain. The values of its tasks and the keys of its rows are known, so that not all is refused at once."""

    def __init__(self, domain: Domain, luck: Random) -> None:
        self.luck = luck
        self.tasks = domain.tasks("base")
        self.functions = [schema["function"] for schema in (*domain.tool_schemas, *domain.user_tool_schemas)]
        self.correct = [(a.name, json.dumps(dict(a.arguments))) for task in self.tasks for a in task.gold_actions]
        databases = [d for d in (domain.database, domain.user_database) if d is not None]
        keys = [key for d in databases for name in d.bases for key in list(d.table(name))[:300]]
        self.known = [json.dumps(value) for value in keys]
        self.known += [json.dumps(value) for _, arguments in self.correct for value in json.loads(arguments).values()]

    def turn(self) -> AgentTurn:
        """Mostly calls, one or several; some speech; some text as a model might write it."""
        luck = self.luck
        kind = luck.random()
        if kind < 0.8:
            return AgentTurn(None, tuple(self.action() for _ in range(luck.choice((1, 1, 1, 2, 4)))))
        if kind < 0.87:
            return AgentTurn(luck.choice((*SPEECH, *TEXTS)))
        if kind < 0.9:
            return AgentTurn("".join(luck.choices(string.printable, k=luck.randrange(400))))
        return parse_action(self.written())

    def written(self) -> str:
        """A call in words, whole or not."""
        luck = self.luck
        try:
            text = json.dumps(self.action().to_json())
        except RecursionError:
            text = '{"name": "get_users", "arguments": ' + '{"a": [' * 20_000
        cut = text[: luck.randrange(len(text))] if luck.random() < 0.5 else text
        return luck.choice((cut, f"[{cut}]", '{"tool_calls": ' + cut + "}", "[{" * 50_000, '{"name": 1}', "{}", cut * 2))

    def action(self) -> Action:
        """A correct call, or one with known values, with a few things done to it."""
        luck = self.luck
        if luck.random() < 0.5:
            name, text = luck.choice(self.correct)
            arguments = json.loads(text)
        else:
            function = luck.choice(self.functions)
            name, arguments = function["name"], {n: self.known_value() for n in function["parameters"]["properties"]}
        for _ in range(luck.choice((0, 1, 1, 2, 3))):
            name = self.spoil(name, arguments)
        return Action(name, arguments, luck.choice(("assistant", "assistant", "user")))

    def spoil(self, name: str, arguments: dict[str, Any]) -> str:
        """Do one thing to the arguments, or to the name that is returned."""
        luck = self.luck
        what = luck.randrange(9)
        if what == 0:
            return luck.choice((*NAMES, "".join(luck.choices(string.printable, k=luck.randrange(20)))))
        if what == 1 or not arguments:
            arguments[luck.choice(INJECTED)] = self.anything()
            return name
        key = luck.choice(list(arguments))
        value = arguments[key]
        if what == 2:
            del arguments[key]
        elif what == 3:
            arguments[luck.choice(TEXTS)] = arguments.pop(key)
        elif what == 4:
            arguments[key] = luck.choice(([value], {"value": value}, [value, value], str(value) if plain(value) else [[value]]))
        elif what == 5 and isinstance(value, list) and value:
            value[luck.randrange(len(value))] = self.anything()
        elif what == 5 and isinstance(value, str | list):
            arguments[key] = value * 2
        else:
            arguments[key] = self.anything()
        return name

    def known_value(self) -> Any:
        return json.loads(self.luck.choice(self.known))

    def anything(self) -> Any:
        """A value of any kind that JSON, or a careless parser, can bring."""
        luck = self.luck
        kind = luck.randrange(10)
        if kind == 0:
            return luck.choice(TEXTS)
        if kind == 1:
            return luck.choice(NUMBERS)
        if kind == 2:
            return nested(luck, luck.choice((1, 2, 3, 10, 90, 110, 400, 3000)))
        if kind == 3:
            return luck.choice(("x", "🙂", "\x00", "1")) * luck.choice((20_000, 300_000) if luck.random() < 0.05 else (30, 300))
        if kind == 4:
            return [self.known_value() for _ in range(luck.randrange(4))]
        if kind == 5:
            return {luck.choice(INJECTED): self.known_value() for _ in range(luck.randrange(4))}
        if kind == 6:
            return "".join(luck.choices(string.printable, k=luck.randrange(30)))
        if kind == 7:
            return luck.choice(EXPRESSIONS)
        return self.known_value()


def tables(databases: Iterator[Database | None]) -> str:
    """sha256 of all rows, dumped anew: a row keeps the text that it was printed with."""
    dumped = [
        {name: {key: row.dump() for key, row in database.table(name).items()} for name in database.bases}
        for database in databases
        if database is not None
    ]
    return hashlib.sha256(json.dumps(dumped, default=str).encode()).hexdigest()


def state(toolkit: ToolKit) -> str:
    return tables(d for d in (toolkit.db, toolkit.user and toolkit.user.db))


def fingerprint(domain: Domain) -> dict[str, str]:
    """The base, and the states that tasks begin with."""
    prepared = {task.id: state(domain.new_toolkit(task)) for task in domain.tasks("base") if task.initial_state}
    return {"": tables(d for d in (domain.database, domain.user_database)), **prepared}


def can_act_on(answer: Message) -> bool:
    """The error has words, or quotes what was given: a model can tell what to change."""
    told = (answer.content or "").removeprefix("Error: ")
    if not (answer.content or "").startswith("Error: ") or not told.strip():
        return False
    arguments = answer.action.arguments if answer.action else {}
    parts = [part for pair in arguments.items() for part in pair if part is None or plain(part)]
    given = [text for part in parts for text in (str(part), repr(part))]
    return len(re.findall(r"[A-Za-z]{2,}", told)) >= 2 or any(part and part in told for part in given)


def played(domain: Domain, count: int, seed: int) -> Iterator[tuple[Env, tuple[Message, ...]]]:
    """At least `count` actions, episode after episode: the environment after each turn, with what the agent read."""
    luck = Random(f"{domain.name}-{seed}")
    fuzzer = Fuzzer(domain, luck)
    solo_tasks: list[Task] = [task for task in fuzzer.tasks if task.ticket] if domain.solo_policy else []
    while count > 0:
        solo = bool(solo_tasks) and luck.random() < 0.2
        task = luck.choice(solo_tasks if solo else fuzzer.tasks)
        limit = {"max_steps": 10**6, "max_errors": luck.choice((3, 10**6)), "max_repeats": luck.choice((3, 10**6))}
        env = Env(domain, task, None if solo else ScriptedUser(10**6, 10**6), **limit)
        env.reset(seed=luck.randrange(1000))
        left = ACTIONS_PER_EPISODE
        while left > 0 and not env.done:
            turn = fuzzer.turn()
            actions = max(1, len(turn.actions))
            left, count = left - actions, count - actions
            yield env, env.step(turn)


def check(domain: Domain, count: int, seed: int) -> None:
    before = fingerprint(domain)
    errors = answered = 0
    last: Env | None = None
    for env, read in played(domain, count, seed):
        for message in read:
            answered += message.role == "tool"
            errors += message.error
            assert message.content is not None
            if message.error:
                assert can_act_on(message), message
        if last is not None and env is not last:
            score(last)
        last = env
    assert fingerprint(domain) == before
    assert 0.2 < errors / answered < 0.98, "the actions are all wrong, or all right"


def score(env: Env) -> None:
    """Whatever was played can be scored."""
    env.interrupt(StopReason.USER_STOP)
    reward = action_reward(env.task, env.transcript, env)
    assert -1 <= reward.total <= 1
    assert 0 <= episode_metrics(env.task, env.transcript, env, reward).official_reward <= 1


@pytest.fixture(scope="module", params=DOMAINS)
def domain(request: pytest.FixtureRequest) -> Domain:
    return load_domain(request.param, open_source("packaged"))


def test_no_action_breaks_an_environment(domain: Domain):
    check(domain, 1_000, seed=0)


@pytest.mark.slow
def test_two_hundred_thousand_actions_break_no_environment(domain: Domain):
    check(domain, SLOW_TOTAL // len(DOMAINS), seed=1)


def test_the_check_sees_a_row_of_the_base_that_was_written(domain: Domain):
    before = fingerprint(domain)
    name = next(iter(domain.database.bases))
    row = next(iter(domain.database.table(name).values()))
    field = next(iter(row.__dict__))
    kept = row.__dict__[field]
    row.__dict__[field] = "written"
    try:
        assert fingerprint(domain) != before
    finally:
        row.__dict__[field] = kept
    assert fingerprint(domain) == before
