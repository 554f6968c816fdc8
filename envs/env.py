"""One conversation between an agent, a customer and the tools: a plain object, no threads, every step a function call.

>>> env = Env(domain, task, ScriptedUser())
>>> env.reset()
(Message(role='assistant', content='Hi! How can I help you today?', …), Message(role='user', content='…', …))
>>> while not env.done:
...     env.step(agent(env.transcript))

A caller whose user is asynchronous takes the two halves of `step`: `begin(turn)`, and if `awaiting_user`, `finish(reply)`.
"""

from __future__ import annotations

from envs.domain import Domain
from envs.errors import TaudojoError
from envs.toolkit import ToolKit
from envs.types import GREETING, Action, AgentTurn, Message, StopReason, Task, Transcript
from envs.users.base import User, UserReply


class Env:
    """An episode of `task`.

    Args:
        max_steps: Agent turns after which the episode ends as MAX_STEPS.
        max_errors: Failed or unreadable calls after which it ends as TOO_MANY_ERRORS.
        max_repeats: Equal calls in a row at which it ends as LOOP.
    """

    def __init__(
        self, domain: Domain, task: Task, user: User, *, max_steps: int = 30, max_errors: int = 10, max_repeats: int = 3
    ) -> None:
        self.domain = domain
        self.task = task
        self.user = user
        self.max_steps = max_steps
        self.max_errors = max_errors
        self.max_repeats = max_repeats
        self._clear()

    def _clear(self) -> None:
        self._toolkit = self.domain.new_toolkit()
        self._messages: list[Message] = []
        self._stop_reason: StopReason | None = None
        self._awaiting_user = False
        self._steps = self._errors = self._repeats = 0
        self._last_call: Action | None = None

    def reset(self, seed: int | None = None) -> tuple[Message, ...]:
        """Start over on an unchanged database: the greeting and the customer's first words.

        Raises:
            TaudojoError: the task asks for an initial state, which no supported domain has.
        """
        if self.task.raw.get("initial_state"):
            raise TaudojoError(
                f"Task {self.task.id} of {self.domain.name} begins with an initial state; that is not supported yet."
            )
        self._clear()
        self.user.reset(self.task, seed)
        self._messages += [Message("assistant", GREETING), Message("user", self.user.opening())]
        return tuple(self._messages)

    def step(self, turn: AgentTurn) -> tuple[Message, ...]:
        """Play the agent's turn and return what came after it: tool results, or the customer's answer.

        Raises:
            RuntimeError: the episode has not begun, is over, or awaits the customer.
        """
        messages = self.begin(turn)
        if self._awaiting_user:
            messages += self.finish(self.user.reply(turn.content or ""))
        return messages

    def begin(self, turn: AgentTurn) -> tuple[Message, ...]:
        """The first half of `step`: run the calls, or hand the text over (then `awaiting_user` is true).

        As in τ²-bench, words beside a call are kept but the customer does not hear them. A turn that does not parse, or
        says nothing, is answered by an error that the agent reads.
        """
        if not self._messages or self.done or self._awaiting_user:
            state = "is over" if self.done else "awaits the customer" if self._awaiting_user else "has not begun: call reset()"
            raise RuntimeError(f"The episode of task {self.task.id} {state}.")
        self._steps += 1
        failure = turn.parse_failure
        if failure is None and not turn.actions and not (turn.content or "").strip():
            failure = "The message is empty. Call a tool, or write to the customer."
        self._messages.append(Message("assistant", turn.content, turn.actions if failure is None else (), parse_failure=failure))
        if failure is None and not turn.actions:
            self._awaiting_user = True
            return ()
        before = len(self._messages)
        if failure is not None:
            self._answer(Message("tool", f"Error: {failure}", error=True))
        for action in turn.actions if failure is None else ():
            result = self._toolkit.use(action)
            self._answer(Message("tool", result.content, action=action, error=result.error))
            self._count_repeats(action)
            if self.done:
                break
        self._end_if_long()
        return tuple(self._messages[before:])

    def finish(self, reply: UserReply) -> tuple[Message, ...]:
        """The second half of `step` after a text turn: take in the customer's answer."""
        if not self._awaiting_user:
            raise RuntimeError(f"The episode of task {self.task.id} does not await the customer: call begin() with a text turn.")
        self._awaiting_user = False
        message = Message("user", reply.text)
        self._messages.append(message)
        if reply.stop is not None:
            self.interrupt(reply.stop)
        self._last_call = None
        self._end_if_long()
        return (message,)

    def interrupt(self, reason: StopReason) -> None:
        """End the episode from outside. The first reason stays."""
        if self._stop_reason is None:
            self._stop_reason = reason
            self._awaiting_user = False

    @property
    def awaiting_user(self) -> bool:
        """Whether the agent has spoken and the customer has not answered yet."""
        return self._awaiting_user

    @property
    def stop_reason(self) -> StopReason | None:
        return self._stop_reason

    @property
    def done(self) -> bool:
        return self._stop_reason is not None

    @property
    def toolkit(self) -> ToolKit:
        return self._toolkit

    @property
    def transcript(self) -> Transcript:
        return Transcript(self.task.id, self.domain.name, tuple(self._messages), self._stop_reason)

    def _answer(self, message: Message) -> None:
        self._messages.append(message)
        self._errors += message.error
        if self._errors >= self.max_errors:
            self.interrupt(StopReason.TOO_MANY_ERRORS)

    def _count_repeats(self, action: Action) -> None:
        self._repeats = self._repeats + 1 if action == self._last_call else 1
        self._last_call = action
        if self._repeats >= self.max_repeats:
            self.interrupt(StopReason.LOOP)

    def _end_if_long(self) -> None:
        if self._steps >= self.max_steps:
            self.interrupt(StopReason.MAX_STEPS)
