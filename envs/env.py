"""One conversation between an agent, a customer and the tools: a plain object, no threads, every step a function call.

>>> env = Env(domain, task, ScriptedUser())
>>> env.reset()
(Message(role='assistant', content='Hi! How can I help you today?', …), Message(role='user', content='…', …))
>>> while not env.done:
...     env.step(agent(env.transcript))

A caller whose user is asynchronous takes the parts of `reset` (`open`) and of `step` (`begin`), and after each:

    while env.awaiting_user:
        env.finish(await env.ask())

Without a user the agent works alone (solo mode) on the task's ticket, with the customer's tools beside its own.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import cast

from envs.domain import DONE, STOP_TOKEN, Domain
from envs.errors import TaudojoError, UserError
from envs.toolkit import Snapshot, ToolKit
from envs.types import GREETING, Action, AgentTurn, Message, Requestor, StopReason, Task, Transcript
from envs.users.base import ToolUser, User, UserReply

#: Rounds of calls that a customer may make before they answer; more is a fault of the simulation.
_MOST_USER_ROUNDS = 25


@dataclass
class _State:
    """All that changes in an episode beside the databases and the user."""

    messages: list[Message] = field(default_factory=list)
    stop_reason: StopReason | None = None
    awaiting_user: bool = False
    heard: str | None = None  # what the customer answers next; None is the greeting
    steps: int = 0
    errors: int = 0
    repeats: int = 0
    user_rounds: int = 0
    last_call: Action | None = None

    def copied(self) -> _State:
        return replace(self, messages=list(self.messages))


@dataclass(frozen=True)
class EnvSnapshot:
    """A moment of an episode to go back to, any number of times."""

    toolkit: Snapshot
    state: _State
    user: User | None


class Env:
    """An episode of `task`.

    Args:
        user: The customer; None for solo mode.
        max_steps: Agent turns after which the episode ends as MAX_STEPS.
        max_errors: Failed or unreadable calls after which it ends as TOO_MANY_ERRORS.
        max_repeats: Equal calls in a row at which it ends as LOOP.

    Raises:
        TaudojoError: no user, and the domain has no solo mode.
    """

    def __init__(
        self, domain: Domain, task: Task, user: User | None, *, max_steps: int = 30, max_errors: int = 10, max_repeats: int = 3
    ) -> None:
        self.domain = domain
        self.task = task
        self.user = user
        self.max_steps = max_steps
        self.max_errors = max_errors
        self.max_repeats = max_repeats
        self._toolkit: ToolKit | None = None  # before `reset` it is made for those who ask
        domain.require_mode(solo=self.solo)
        self._state = _State()

    def reset(self, seed: int | None = None) -> tuple[Message, ...]:
        """Start over: what the agent has before it, that is the greeting and the customer's first words in most tasks.

        Raises:
            TaudojoError: the task's initial state does not fit the domain.
        """
        self.open(seed)
        self._hear_user()
        return self.transcript.agent_messages

    def open(self, seed: int | None = None) -> None:
        """The first half of `reset`: prepare the databases and the conversation. Then `awaiting_user` is true, as a rule."""
        self._toolkit = self.domain.new_toolkit(self.task, solo=self.solo)
        state = self._state = _State(messages=list(self.task.history))
        if self.user is None:
            if not self.task.ticket:
                raise TaudojoError(f"Task {self.task.id} of {self.domain.name} has no ticket, so no agent can work on it alone.")
            state.messages.insert(0, Message("user", self.task.ticket))
            return
        self.user.reset(self.task, seed)
        if not state.messages:
            state.messages.append(Message("assistant", GREETING))
            state.awaiting_user = True
            return
        last = state.messages[-1]
        state.awaiting_user = last.role == "assistant" or last.is_users_own
        state.heard = last.content if last.role == "assistant" else ""

    def step(self, turn: AgentTurn) -> tuple[Message, ...]:
        """Play the agent's turn and return what it reads next: tool results, or the customer's answer.

        Raises:
            RuntimeError: the episode has not begun, is over, or awaits the customer.
        """
        return self.begin(turn) + self._hear_user()

    def begin(self, turn: AgentTurn) -> tuple[Message, ...]:
        """The first half of `step`: run the calls, or hand the text over (then `awaiting_user` is true).

        As in τ²-bench, words beside a call are kept but the customer does not hear them. A turn that does not parse, or
        says nothing, is answered by an error that the agent reads.
        """
        state = self._state
        if not state.messages or self.done or state.awaiting_user:
            why = "is over" if self.done else "awaits the customer" if state.awaiting_user else "has not begun: call reset()"
            raise RuntimeError(f"The episode of task {self.task.id} {why}.")
        state.steps += 1
        if self.solo and _is_last(turn):
            state.messages.append(Message("assistant", STOP_TOKEN))
            self.interrupt(StopReason.AGENT_STOP)
            return ()
        failure = self._silence(turn) if turn.parse_failure is None else turn.parse_failure
        actions = _made_by("assistant", turn.actions) if failure is None else ()
        state.messages.append(Message("assistant", turn.content, actions, parse_failure=failure))
        if failure is None and not actions:
            state.awaiting_user, state.heard, state.user_rounds = True, turn.content, 0
            return ()
        before = len(state.messages)
        if failure is not None:
            self._answer(Message("tool", f"Error: {failure}", error=True))
        for action in actions:
            self._call(action)
            self._count_repeats(action)
            if self.done:
                break
        self._end_if_long()
        return tuple(state.messages[before:])

    def ask(self) -> UserReply | str | Awaitable[UserReply | str]:
        """What the customer answers, for `finish`; an awaitable where the user is asynchronous."""
        if self.user is None or not self._state.awaiting_user:
            raise RuntimeError(f"The episode of task {self.task.id} does not await the customer: call begin() with a text turn.")
        return self.user.opening() if self._state.heard is None else self.user.reply(self._state.heard)

    def finish(self, reply: UserReply | str) -> tuple[Message, ...]:
        """The second half: take in the customer's answer. After calls of their own the customer is asked again."""
        state = self._state
        if not state.awaiting_user:
            raise RuntimeError(f"The episode of task {self.task.id} does not await the customer: call begin() with a text turn.")
        if isinstance(reply, str):
            reply = UserReply(reply)
        if reply.actions:
            self._run_user_calls(reply)
            return ()
        state.awaiting_user = False
        message = Message("user", reply.text)
        state.messages.append(message)
        if reply.stop is not None:
            self.interrupt(reply.stop)
        state.last_call = None
        self._end_if_long()
        return (message,)

    def interrupt(self, reason: StopReason) -> None:
        """End the episode from outside. The first reason stays."""
        if self._state.stop_reason is None:
            self._state.stop_reason = reason
            self._state.awaiting_user = False

    def snapshot(self) -> EnvSnapshot:
        """This moment: databases, messages, counters, and a copy of the user."""
        return EnvSnapshot(self.toolkit.snapshot(), self._state.copied(), copy.deepcopy(self.user))

    def restore(self, snapshot: EnvSnapshot) -> None:
        """Go back to a snapshot of this environment or of one it was forked from."""
        self.toolkit.restore(snapshot.toolkit)
        self._state = snapshot.state.copied()
        self.user = copy.deepcopy(snapshot.user)

    def fork(self) -> Env:
        """Another environment at this moment; neither sees what happens in the other from here."""
        new = copy.copy(self)
        new._toolkit = self.toolkit.fork()
        new._state = self._state.copied()
        new.user = copy.deepcopy(self.user)
        return new

    @property
    def solo(self) -> bool:
        """Whether the agent works alone."""
        return self.user is None

    @property
    def awaiting_user(self) -> bool:
        """Whether it is the customer's turn."""
        return self._state.awaiting_user

    @property
    def stop_reason(self) -> StopReason | None:
        return self._state.stop_reason

    @property
    def done(self) -> bool:
        return self._state.stop_reason is not None

    @property
    def toolkit(self) -> ToolKit:
        """The tools on the episode's databases; before `reset` on unchanged ones."""
        if self._toolkit is None:
            self._toolkit = self.domain.new_toolkit(solo=self.solo)
        return self._toolkit

    @property
    def transcript(self) -> Transcript:
        return Transcript(self.task.id, self.domain.name, tuple(self._state.messages), self._state.stop_reason)

    def _hear_user(self) -> tuple[Message, ...]:
        heard: tuple[Message, ...] = ()
        while self._state.awaiting_user:
            try:
                reply = self.ask()
            except UserError:
                self.interrupt(StopReason.USER_ERROR)
                break
            if not isinstance(reply, UserReply | str):
                raise TypeError("This user answers asynchronously: play with open(), begin(), ask() and finish().")
            heard += self.finish(reply)
        return heard

    def _silence(self, turn: AgentTurn) -> str | None:
        """What is wrong with a turn that reaches nobody."""
        if turn.actions:
            return None
        if self.solo:
            return f"There is no customer to talk to. Call a tool, or {DONE} when the task is solved."
        return None if (turn.content or "").strip() else "The message is empty. Call a tool, or write to the customer."

    def _call(self, action: Action) -> Message:
        result = self.toolkit.use(action)
        message = Message("tool", result.content, action=action, error=result.error)
        self._answer(message)
        return message

    def _run_user_calls(self, reply: UserReply) -> None:
        state = self._state
        actions = _made_by("user", reply.actions)
        state.messages.append(Message("user", reply.text or None, actions=actions))
        results = tuple([self._call(action) for action in actions])
        state.user_rounds += 1
        if state.user_rounds > _MOST_USER_ROUNDS:
            self.interrupt(StopReason.USER_ERROR)
        if not self.done:
            cast(ToolUser, self.user).observe(results)
            state.heard = ""

    def _answer(self, message: Message) -> None:
        self._state.messages.append(message)
        self._state.errors += message.error
        if self._state.errors >= self.max_errors:
            self.interrupt(StopReason.TOO_MANY_ERRORS)

    def _count_repeats(self, action: Action) -> None:
        state = self._state
        state.repeats = state.repeats + 1 if _equal(action, state.last_call) else 1
        state.last_call = action
        if state.repeats >= self.max_repeats:
            self.interrupt(StopReason.LOOP)

    def _end_if_long(self) -> None:
        if self._state.steps >= self.max_steps:
            self.interrupt(StopReason.MAX_STEPS)


def _is_last(turn: AgentTurn) -> bool:
    """Whether a solo agent ends here (τ²-bench, `LLMSoloAgent`): other calls beside `done` are not made."""
    if turn.parse_failure is not None:
        return False
    return any(action.name == DONE for action in turn.actions) or (not turn.actions and STOP_TOKEN in (turn.content or ""))


def _made_by(requestor: Requestor, actions: tuple[Action, ...]) -> tuple[Action, ...]:
    """The calls under their maker's own name: nobody calls in the name of the other."""
    return tuple([a if a.requestor == requestor else replace(a, requestor=requestor) for a in actions])


def _equal(action: Action, other: Action | None) -> bool:
    try:
        return action == other
    except RecursionError:  # arguments nested beyond what Python compares
        return False
