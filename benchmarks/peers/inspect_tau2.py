"""τ²-bench's tools as inspect-evals 0.26.0 has them, driven directly: one side of `benchmarks.envs`, a process of its own.

The package reimplements τ² for Inspect: tools are `@tool` functions on a `StoreModel`, which lives in the sample's `Store`. It
runs on inspect-ai, which wants an older fsspec than our lock has (at most 2026.6.0), so it gets a Python of its own
(`benchmarks.envs.peer_python`). No model, no `eval`, no log is involved; an episode is

    reset     a `TaskState`, its store made the current one, and the domain's tools in it: the database is read from its file. In
              telecom the package's `telecom_initializer` too, which brings about the task's initial state.
    replay    each gold action is awaited as a tool; telecom's customer has tools here as well. Errors are passed over.
    reward    the domain's own scorer: in retail and airline the database against one that is loaded anew and brought to the gold
              state, and the information to be told; in telecom the task's assertions and, where they count, its actions.

In the peer's favour: tools are called without Inspect's parsing of arguments and its transcript of events. Off the clock are
putting together what the scorer reads of the conversation, freeing the databases, and removing the unpacked copies that loading
them leaves on the disk. The package has no mock domain.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelName
from inspect_ai.scorer import CORRECT, Scorer, Target
from inspect_ai.solver import TaskState
from inspect_ai.tool import Tool, ToolCall
from inspect_ai.util import Store, store_as
from inspect_ai.util._store import init_subtask_store
from inspect_evals.tau2.airline.AirlineAgentTools import get_airline_tools
from inspect_evals.tau2.airline.scorer import airline_scorer
from inspect_evals.tau2.airline.tools import all_airline_tools
from inspect_evals.tau2.common.agents import StoredAgentState
from inspect_evals.tau2.common.metadata import Tau2MetaData
from inspect_evals.tau2.data_model.tasks import Action, Task
from inspect_evals.tau2.retail.scorer import retail_scorer
from inspect_evals.tau2.retail.tools import all_retail_tools, get_retail_tools
from inspect_evals.tau2.telecom.scorer import telecom_scorer
from inspect_evals.tau2.telecom.solver import telecom_initializer
from inspect_evals.tau2.telecom.tools import all_telecom_agent_tools
from inspect_evals.tau2.telecom.user_tools import all_telecom_user_tools

from benchmarks.episodes import EpisodeFigures, EpisodeWorkload, PassTimes, Tell, side_main
from envs.errors import TaudojoError

INSTANCE = "benchmark"


@dataclass(frozen=True)
class Peer:
    """A domain of the package: what prepares a sample, its tools by requestor and name, and its scorer."""

    prepare: Callable[[TaskState], Awaitable[Any]]
    tools: Mapping[str, Mapping[str, Tool]]
    scorer: Scorer


def load_peer(domain: str) -> Peer:
    """Raises TaudojoError for a domain that the package does not have."""
    if domain == "retail":
        return Peer(_reading(get_retail_tools), {"assistant": _named(all_retail_tools)}, retail_scorer())
    if domain == "airline":
        return Peer(_reading(get_airline_tools), {"assistant": _named(all_airline_tools)}, airline_scorer())
    if domain == "telecom":
        initialise = telecom_initializer()
        tools = {"assistant": _named(all_telecom_agent_tools), "user": _named(all_telecom_user_tools)}
        return Peer(lambda state: initialise(state, None), tools, telecom_scorer())
    raise TaudojoError(f"inspect-evals has no domain {domain!r}.")


def _reading(get_tools: Callable[[], object]) -> Callable[[TaskState], Awaitable[None]]:
    async def prepare(state: TaskState) -> None:
        get_tools()

    return prepare


def _named(makers: list[Callable[[], Tool]]) -> dict[str, Tool]:
    return {make.__name__: make() for make in makers}


async def play(peer: Peer, task: Task, metadata: dict[str, Any]) -> tuple[PassTimes, bool]:
    """One episode, and whether the scorer found it correct."""
    actions = gold_actions(task)
    start = time.perf_counter()
    state = TaskState(ModelName("none/none"), task.id, 1, "", [], metadata=metadata)
    init_subtask_store(state.store)
    await peer.prepare(state)
    ready = time.perf_counter()
    for action in actions:
        try:
            await peer.tools[action.requestor][action.name](**action.arguments)
        except Exception:  # the agent would read it and go on
            continue
    done = time.perf_counter()
    write_down(state, task)
    asked = time.perf_counter()
    score = await peer.scorer(state, Target(""))
    end = time.perf_counter()
    init_subtask_store(Store())  # else the next episode would free this one's databases
    return PassTimes(ready - start, done - ready, end - asked), score is not None and score.value == CORRECT


def gold_actions(task: Task) -> list[Action]:
    return (task.evaluation_criteria.actions or []) if task.evaluation_criteria else []


def write_down(state: TaskState, task: Task) -> None:
    """What the scorers read of the conversation. The agent speaks as a user here: Inspect's own model plays the customer."""
    criteria = task.evaluation_criteria
    if criteria is None:
        return
    calls: dict[str, list[ToolCall]] = {"assistant": [], "user": []}
    for number, action in enumerate(gold_actions(task)):
        calls[action.requestor].append(ToolCall(f"call_{number}", action.name, action.arguments))
    if calls["user"]:
        state.messages.append(ChatMessageAssistant(content="", tool_calls=calls["user"]))
    state.messages.append(ChatMessageUser(content="\n".join(criteria.communicate_info or ["Goodbye."])))
    if "ACTION" in criteria.reward_basis:
        stored = store_as(StoredAgentState, INSTANCE)
        stored.messages = [ChatMessageAssistant(content="", tool_calls=calls["assistant"])]


async def play_all(workload: EpisodeWorkload, tell: Tell, temporary: Path) -> EpisodeFigures:
    """`workload.passes` over the tasks, after an episode that is not counted."""
    peer = load_peer(workload.domain)
    tasks = [Task.model_validate(raw) for raw in workload.raw_tasks()]
    metadata = [Tau2MetaData(instance=INSTANCE, task=task).model_dump() for task in tasks]
    await play(peer, tasks[0], metadata[0])
    passes, passed = [], 0
    for _ in range(workload.passes):
        episodes = []
        for task, described in zip(tasks, metadata, strict=True):
            episodes.append(await play(peer, task, described))
            for unpacked in temporary.iterdir():
                unpacked.unlink()
            tell(len(passes) * len(tasks) + len(episodes), workload.passes * len(tasks))
        passes.append(PassTimes.sum(times for times, _ in episodes))
        passed = sum(correct for _, correct in episodes)
    calls = sum(len(gold_actions(task)) for task in tasks)
    return EpisodeFigures.of(passes, episodes=len(tasks), calls=calls, passed=passed)


def run(workload: EpisodeWorkload, tell: Tell) -> EpisodeFigures:
    with tempfile.TemporaryDirectory() as folder:
        # Whenever it loads a database, the package leaves an unpacked copy behind.
        tempfile.tempdir = folder
        return asyncio.run(play_all(workload, tell, Path(folder)))


if __name__ == "__main__":
    side_main(run)
