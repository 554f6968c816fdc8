"""The real retail domain, and a way to play chosen calls through the real environment."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from envs.data import open_source
from envs.domain import Domain, load_domain
from envs.env import Env
from envs.types import Action, AgentTurn, StopReason, Task, Transcript
from envs.users.base import UserReply

OFFICIAL_DATA = Path(__file__).parents[3] / "shared" / "tau2"


class SatisfiedUser:
    """Says hello, and ends the conversation at the agent's first words."""

    def reset(self, task: Task, seed: int | None) -> None:
        pass

    def opening(self) -> str:
        return "Hello."

    def reply(self, message: str) -> UserReply:
        return UserReply("Thanks. ###STOP###", StopReason.USER_STOP)


@pytest.fixture(scope="session")
def domain_of() -> Callable[[str], Domain]:
    """A domain by name, from the official data where it is at hand, else from the packaged data."""
    source = open_source("path", OFFICIAL_DATA) if OFFICIAL_DATA.is_dir() else open_source("packaged")
    return lambda name: load_domain(name, source)


@pytest.fixture(scope="session")
def where(domain_of: Callable[[str], Domain]) -> dict[str, Any]:
    """The data source of `domain_of`, as the Gymnasium environments take it."""
    source = domain_of("mock").source
    return {"source": "path", "path": source.root} if source.source == "path" else {}


@pytest.fixture(scope="session")
def retail(domain_of: Callable[[str], Domain]) -> Domain:
    return domain_of("retail")


@pytest.fixture(scope="session")
def play(retail: Domain) -> Callable[..., tuple[Task, Transcript, Env]]:
    """Play calls, then a last text that ends the episode; the answer are the arguments of a reward function."""

    def play(task: Task, calls: Sequence[Action | str], say: str = "Done.") -> tuple[Task, Transcript, Env]:
        env = Env(retail, task, SatisfiedUser(), max_steps=1000, max_errors=1000, max_repeats=1000)
        env.reset()
        for call in calls:
            env.step(AgentTurn(actions=(call,)) if isinstance(call, Action) else AgentTurn(content=call, parse_failure="broken"))
        env.step(AgentTurn(content=say))
        return task, env.transcript, env

    return play


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """A retail task with these gold actions."""

    def make_task(actions: Sequence[Action | dict[str, Any]], task_id: str = "made-up", **criteria: Any) -> Task:
        raw = [a.to_json() if isinstance(a, Action) else a for a in actions]
        return Task(
            "retail",
            {
                "id": task_id,
                "description": None,
                "user_scenario": {"persona": None, "instructions": "Anything."},
                "initial_state": None,
                "evaluation_criteria": {
                    "actions": raw,
                    "communicate_info": [],
                    "reward_basis": ["DB", "COMMUNICATE"],
                    **criteria,
                },
            },
        )

    return make_task
