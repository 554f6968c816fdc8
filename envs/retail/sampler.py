"""Make retail tasks: as many as are wanted, in τ²'s format, each proven solvable by playing its gold actions.

>>> official = task_users(retail, retail.tasks("test"))
>>> heldout = sample_tasks(retail, 60, seed=1, exclude_users=official)
>>> train = sample_tasks(retail, 2000, seed=0, exclude_users=official | task_users(retail, heldout))
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from random import Random
from typing import Any

from envs.domain import Domain
from envs.env import Env
from envs.errors import TaudojoError
from envs.retail.expert import GoldAgent
from envs.retail.models import RetailDatabase, User
from envs.retail.templates import TEMPLATES, Draft
from envs.types import Action, StopReason, Task
from envs.users.scripted import ScriptedUser

KINDS: tuple[str, ...] = tuple(TEMPLATES)

_ATTEMPTS = 500


def sample_tasks(
    domain: Domain, n: int, seed: int, kinds: Sequence[str] | None = None, exclude_users: Collection[str] = frozenset()
) -> list[Task]:
    """`n` different tasks, dealt over `kinds` in turn (default: all of KINDS); the same for the same arguments.

    No customer in `exclude_users` appears. `Task.kind` is the kind.

    Raises:
        TaudojoError: an unknown kind, or no customer left who could have such a task.
    """
    kinds = KINDS if kinds is None else tuple(kinds)
    for kind in kinds:
        if kind not in TEMPLATES:
            raise TaudojoError(f"There is no task kind {kind!r} in {domain.name}; choose from {', '.join(KINDS)}.")
    db = domain.database
    assert isinstance(db, RetailDatabase)
    users = [user for user_id, user in db.users.items() if user_id not in exclude_users]
    streams = {kind: Random(f"{seed}-{kind}") for kind in kinds}
    seen: set[str] = set()
    tasks = []
    for i in range(n):
        kind = kinds[i % len(kinds)]
        task = _new_task(domain, db, users, kind, streams[kind], task_id=f"{kind}-{seed}-{i}", seen=seen, seed=seed)
        tasks.append(task)
    return tasks


def task_users(domain: Domain, tasks: Iterable[Task]) -> set[str]:
    """The ids of all customers that the tasks are about: by their gold calls and by the words of their scenarios."""
    db = domain.database
    assert isinstance(db, RetailDatabase)
    found = set()
    for task in tasks:
        words = json.dumps([dict(task.instructions), [dict(a.arguments) for a in task.gold_actions]]).lower()
        for user in db.users.values():
            if (
                user.user_id in words
                or user.email.lower() in words
                or any(order_id.lower() in words for order_id in user.orders)
                or (user.address.zip in words and user.name.first_name.lower() in words and user.name.last_name.lower() in words)
            ):
                found.add(user.user_id)
    return found


def proof_failure(domain: Domain, task: Task) -> str | None:
    """Play the gold actions against the scripted customer; None when the task is sound, else what is wrong with it."""
    env = Env(domain, task, ScriptedUser())
    agent = GoldAgent(domain, task)
    env.reset()
    while not env.done:
        env.step(agent.next_turn(env.transcript))
    if env.stop_reason is not StopReason.USER_STOP:
        return f"it ends with {env.stop_reason}"
    if any(message.error for message in env.transcript.messages):
        return "a gold action fails"
    if env.transcript.calls != task.gold_actions:
        return "not all gold actions are played"
    if bool(env.toolkit.changes()) is not any(action.name in domain.write_tools for action in task.gold_actions):
        return "the database change does not fit the gold actions"
    said = " ".join(m.content or "" for m in env.transcript.messages if m.role == "assistant").lower().replace(",", "")
    if any(info.lower() not in said for info in task.communicate_info):
        return "the answer is not said"
    return None


def _new_task(
    domain: Domain, db: RetailDatabase, users: Sequence[User], kind: str, rng: Random, *, task_id: str, seen: set[str], seed: int
) -> Task:
    for _ in range(_ATTEMPTS if users else 0):
        user = rng.choice(users)
        draft = TEMPLATES[kind](rng, db, user)
        if draft is None:
            continue
        known, unknown, login = _introduction(rng, user)
        identity = json.dumps([draft.reason, login.to_json(), *(a.to_json() for a in draft.actions)])
        if identity in seen:
            continue
        raw = _task_json(task_id, kind, draft, (login, *draft.actions), known, unknown)
        task = Task(domain.name, raw, source=f"sampler, seed {seed}", version=domain.source.version)
        if proof_failure(domain, task) is None:
            seen.add(identity)
            return task
    raise TaudojoError(
        f"No new {kind} task could be made from the {len(users)} customers that are not excluded; ask for fewer tasks."
    )


def _introduction(rng: Random, user: User) -> tuple[str, str | None, Action]:
    """Who the customer says to be, what they do not know, and the call that identifies them."""
    first, last, zip_code = user.name.first_name, user.name.last_name, user.address.zip
    if rng.random() < 0.5:
        words = rng.choice(
            (
                f"You are {first} {last} and your email is {user.email}.",
                f"Your name is {first} {last} and your email address is {user.email}.",
                f"Your email is {user.email}.",
            )
        )
        return words, None, Action("find_user_id_by_email", {"email": user.email})
    words = rng.choice(
        (
            f"You are {first} {last} in zip code {zip_code}.",
            f"Your name is {first} {last} and your zip code is {zip_code}.",
            f"You are {first} {last}, living in {user.address.city}, {user.address.state} {zip_code}.",
        )
    )
    login = Action("find_user_id_by_name_zip", {"first_name": first, "last_name": last, "zip": zip_code})
    return words, "You do not remember your email address.", login


def _task_json(
    task_id: str, kind: str, draft: Draft, actions: Sequence[Action], known: str, unknown: str | None
) -> dict[str, Any]:
    return {
        "id": task_id,
        "description": {"purpose": None, "relevant_policies": None, "notes": draft.answer, "kind": kind},
        "user_scenario": {
            "persona": None,
            "instructions": {
                "task_instructions": "",
                "domain": "retail",
                "reason_for_call": draft.reason,
                "known_info": known,
                "unknown_info": unknown,
            },
        },
        "initial_state": None,
        "evaluation_criteria": {
            "actions": [
                {"action_id": f"{task_id}_{i}", "name": action.name, "arguments": dict(action.arguments), "info": None}
                for i, action in enumerate(actions)
            ],
            "communicate_info": list(draft.info),
            "nl_assertions": None,
            "reward_basis": ["DB", "COMMUNICATE"],
        },
    }
