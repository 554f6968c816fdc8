"""Episodes on this project's environments: one side of `benchmarks.envs`, a process of its own.

An episode is an `Env` that is made and reset, the reference solution played through `Env.step`, one call a turn, and
`official_reward`. The customer has no mind of their own: they make their share of the calls (telecom) when they are asked to, and
hang up at the farewell. So what is measured is the environment, the transcript and the score, without anybody's thinking.

What outlives an episode is the same for every agent: the database that nobody writes, with the printed text of its rows; the
state that a task begins with; the state after its gold actions. The first pass over the tasks makes these and stands apart
(`first_pass_us`). Freeing an environment is not measured, here or at the peer.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from benchmarks.episodes import EpisodeFigures, EpisodeWorkload, PassTimes, Tell, side_main
from envs.data import DataSource
from envs.domain import Domain, load_domain
from envs.env import Env
from envs.types import Action, AgentTurn, Message, StopReason, Task
from envs.users.base import UserReply
from rewards.tau2 import official_reward

#: The agent's words that make the customer act.
ASK = "Please do that now."

#: A limit that no reference solution reaches.
UNLIMITED = 1_000_000

#: Batches of live environments. The first ones go into memory that loading the data has left free, and grow nothing.
BATCHES = 10


@dataclass(frozen=True)
class Script:
    """A conversation in which a task's gold actions are carried out.

    turns: What the agent does. customer: The calls that the customer makes, one group each time the agent says `ASK`.
    """

    task: Task
    turns: tuple[AgentTurn, ...]
    customer: tuple[tuple[Action, ...], ...]

    @classmethod
    def of(cls, task: Task, actions: Sequence[Action] | None = None) -> Script:
        """The script of `actions`, or of all gold actions. The agent's farewell says what the task wants said."""
        turns: list[AgentTurn] = []
        customer = []
        for requestor, group in groupby(task.gold_actions if actions is None else actions, key=lambda action: action.requestor):
            if requestor == "user":
                turns.append(AgentTurn(ASK))
                customer.append(tuple(group))
            else:
                turns += [AgentTurn(actions=(action,)) for action in group]
        turns.append(AgentTurn("\n".join(task.communicate_info) or "Goodbye."))
        return cls(task, tuple(turns), tuple(customer))

    @property
    def farewell(self) -> str:
        return self.turns[-1].content or ""


class ScriptCustomer:
    """The customer of a script."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._asked = 0

    def reset(self, task: Task, seed: int | None) -> None:
        self._asked = 0

    def opening(self) -> str:
        return "Hello."

    def reply(self, message: str) -> UserReply:
        if message == ASK:
            self._asked += 1
            return UserReply("", actions=self._script.customer[self._asked - 1])
        if message == self._script.farewell:
            return UserReply("###STOP###", StopReason.USER_STOP)
        return UserReply("I see.")

    def observe(self, results: tuple[Message, ...]) -> None:
        pass


def opened(domain: Domain, script: Script) -> Env:
    """An environment at the script's first turn."""
    env = Env(domain, script.task, ScriptCustomer(script), max_steps=UNLIMITED, max_errors=UNLIMITED, max_repeats=UNLIMITED)
    env.reset()
    return env


def play(domain: Domain, script: Script) -> tuple[PassTimes, bool]:
    """One episode, and whether it got the full reward."""
    start = time.perf_counter()
    env = opened(domain, script)
    ready = time.perf_counter()
    for turn in script.turns:
        env.step(turn)
    done = time.perf_counter()
    reward = official_reward(script.task, env.transcript, env)
    end = time.perf_counter()
    return PassTimes(ready - start, done - ready, end - done), reward.total == 1.0


def play_all(domain: Domain, scripts: Sequence[Script]) -> tuple[PassTimes, int]:
    """One episode of every script, and how many got the full reward."""
    episodes = [play(domain, script) for script in scripts]
    return PassTimes.sum(times for times, _ in episodes), sum(passed for _, passed in episodes)


def bytes_per_env(domain: Domain, scripts: Sequence[Script], count: int) -> float | None:
    """Growth of resident memory by `count` live environments, each after one write, over their number.

    The largest of several batches, all of them kept alive. None where no reference solution has a call that writes at once.
    """
    import psutil

    written = [write for script in scripts if (write := first_write(domain, script.task)) is not None]
    if not written:
        return None
    process, live, growth = psutil.Process(), [], []
    for _ in range(BATCHES):
        gc.collect()
        before = process.memory_info().rss
        live.append([after_first_turn(domain, written[number % len(written)]) for number in range(count)])
        gc.collect()
        growth.append((process.memory_info().rss - before) / count)
    return max(growth)


def first_write(domain: Domain, task: Task) -> Script | None:
    """The script of the first gold action that changes a database without those before it."""
    for action in task.gold_actions:
        script = Script.of(task, (action,))
        if not after_first_turn(domain, script).toolkit.same_state(domain.new_toolkit(task)):
            return script
    return None


def after_first_turn(domain: Domain, script: Script) -> Env:
    env = opened(domain, script)
    env.step(script.turns[0])
    return env


def run(workload: EpisodeWorkload, tell: Tell) -> EpisodeFigures:
    """Load, play a pass that is not counted, `workload.passes` that are, then fill the memory."""
    source = DataSource(Path(workload.data_root), workload.source, workload.version)
    domain = load_domain(workload.domain, source)
    scripts = [Script.of(task) for task in domain.tasks("base")[: workload.limit]]
    first_pass, passed = play_all(domain, scripts)
    passes = []
    for number in range(workload.passes):
        tell(number * len(scripts), workload.passes * len(scripts))
        passes.append(play_all(domain, scripts)[0])
    return EpisodeFigures.of(
        passes,
        episodes=len(scripts),
        calls=sum(len(script.task.gold_actions) for script in scripts),
        passed=passed,
        first_pass=first_pass,
        bytes_per_env=bytes_per_env(domain, scripts, workload.environments),
    )


if __name__ == "__main__":
    side_main(run)
