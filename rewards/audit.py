"""Which tasks teach or measure little: those that an agent passes by doing nothing, those whose reference solution is no help.

    python -m rewards.audit --domain airline
    python -m rewards.audit --domain airline --split train --json

    noop_passes     an agent that makes no call, and says what the task wants said, gets the full official reward (LLM-free)
    gold_errors     a call of the reference solution is answered with an error
    gold_is_noop    the reference solution leaves the databases as they were

Training leaves such tasks out where `env.exclude_audited` lists their reasons; evaluation never does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from envs.data import open_source
from envs.domain import Domain, load_domain
from envs.errors import TaudojoError
from envs.types import Task
from rewards.matching import played
from rewards.playback import play_calls
from rewards.tau2 import evaluate

Reason = Literal["noop_passes", "gold_errors", "gold_is_noop"]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class Audit:
    """What was found on one task. `errors` are the answers to the gold calls that failed, as `name: answer`."""

    task_id: str
    noop_passes: bool
    gold_errors: bool
    gold_is_noop: bool
    gold_calls: int
    gold_reward: float | None
    errors: tuple[str, ...]

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why one might leave the task out; empty for a sound one."""
        return tuple(reason for reason in REASONS if getattr(self, reason))


def audit(task: Task, domain: Domain) -> Audit:
    """Play the reference solution, and nothing at all. Raises TaudojoError where the task cannot be evaluated."""
    said = "\n".join(task.communicate_info)
    nothing, untouched = play_calls(task, domain, (), said)
    gold, end = play_calls(task, domain, task.gold_actions, said)
    answers = [m for m in played(task, gold) if m.role == "tool" and m.action is not None]
    errors = tuple(f"{m.action.name}: {m.content}" for m in answers if m.error and m.action is not None)
    return Audit(
        task_id=task.id,
        noop_passes=evaluate(task, nothing, domain).reward == 1.0,
        gold_errors=bool(errors),
        gold_is_noop=end.same_state(untouched),
        gold_calls=len(answers),
        gold_reward=evaluate(task, gold, domain).reward,
        errors=errors,
    )


def without(tasks: Iterable[Task], domain: Domain, reasons: Collection[str]) -> list[Task]:
    """The tasks that have none of these faults. Without reasons nothing is played."""
    return [task for task in tasks if not reasons or not set(reasons) & set(audit(task, domain).reasons)]


def _print_table(audits: Sequence[Audit], domain: Domain) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = [a for a in audits if a.reasons]
    table = Table(box=box.SIMPLE, title=f"{domain.name}, {domain.source.version}", title_justify="left")
    for heading in ("task", *REASONS, "gold calls", "gold reward", "errors"):
        table.add_column(heading, overflow="fold")
    for a in found:
        marks = ["x" if reason in a.reasons else "" for reason in REASONS]
        reward = "raises" if a.gold_reward is None else f"{a.gold_reward:g}"
        table.add_row(a.task_id, *marks, str(a.gold_calls), reward, "\n".join(a.errors))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    counts = ", ".join(f"{reason} {sum(reason in a.reasons for a in audits)}" for reason in REASONS)
    console.print(f"{len(found)} of {len(audits)} tasks: {counts}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rewards.audit", description="List tasks that teach or measure little.")
    parser.add_argument("--domain", required=True, help="mock, retail, airline or telecom")
    parser.add_argument("--split", default="base", help="train, test or base (all, by default)")
    parser.add_argument("--data-dir", type=Path, help="the folder that contains domains/; the packaged data by default")
    parser.add_argument("--json", action="store_true", help="all tasks as JSON, with their reasons")
    chosen = parser.parse_args(arguments)
    try:
        domain = load_domain(chosen.domain, open_source("path" if chosen.data_dir else "packaged", chosen.data_dir))
        audits = [audit(task, domain) for task in domain.tasks(chosen.split)]
    except TaudojoError as error:
        print(error, file=sys.stderr)
        return 2
    if chosen.json:
        rows = [{**asdict(a), "reasons": list(a.reasons)} for a in audits]
        print(
            json.dumps({"domain": domain.name, "version": domain.source.version, "split": chosen.split, "tasks": rows}, indent=1)
        )
    else:
        _print_table(audits, domain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
