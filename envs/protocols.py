"""What a domain may bring for training beside data and tools, each in a module of its folder:

    expert.py     GoldAgent(domain, task)                      plays a task as fine-tuning should teach it
    compact.py    compact_policy(domain), render_result(…)     a short prompt and short tool results
    sampler.py    KINDS, sample_tasks(…), task_users(…)        as many new tasks as are wanted
    examples.py   EXAMPLES                                     what users say, each with the call that answers it

`Domain.expert`, `Domain.compact`, `Domain.sampler` and `Domain.examples` find them. Without the first two there are general ones
(`envs/expert.py`, `envs/compact.py`); without a sampler, training takes the official training tasks; without examples, a prompt
shows none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from envs.types import Action, AgentTurn, Task, ToolResult, Transcript

if TYPE_CHECKING:
    from envs.domain import Domain


#: What a user says, and the call that answers it. Its values are invented: a real id would be a fact that a task asks for.
Example = tuple[str, Action]


class Expert(Protocol):
    """Plays one task to its end."""

    def next_turn(self, transcript: Transcript) -> AgentTurn:
        """The turn after `transcript`, whose turns so far are this expert's."""


class CompactForm(Protocol):
    """How a domain looks to a model with little context."""

    def compact_policy(self, domain: Domain) -> str:
        """The rules, and all tools with their arguments."""

    def render_result(self, action: Action, result: ToolResult) -> str:
        """A tool's answer in few words; every id and fact that a task needs stays."""


class Sampler(Protocol):
    """Makes tasks, each proven solvable."""

    KINDS: tuple[str, ...]

    def sample_tasks(
        self,
        domain: Domain,
        n: int,
        seed: int,
        kinds: Sequence[str] | None = None,
        exclude_users: Collection[str] = frozenset(),
    ) -> list[Task]:
        """`n` different tasks, the same for the same arguments; no customer in `exclude_users` appears."""

    def task_users(self, domain: Domain, tasks: Iterable[Task]) -> set[str]:
        """The ids of all customers that the tasks are about."""
