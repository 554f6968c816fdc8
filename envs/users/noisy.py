"""A customer who is hard to serve: any other customer, with seeded faults. Robustness training that τ²-bench does not offer.

>>> env = Env(domain, task, NoisyUser(ScriptedUser(), wrong_id_rate=0.3))

    typo            a reply has mistyped words; ids, names and numbers stay right
    wrong id        the first time that an id is given, one character is wrong; the next reply puts it right
    topic change    the reply is about something else; the agent has to come back to its question
    early stop      the customer hangs up in the middle

The same seed and task give the same faults. The wrapped customer, asynchronous or not, knows nothing of them: it does not hear
what the agent said before a change of topic. Replies without words (the customer uses a tool) pass as they are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable
from dataclasses import replace
from typing import cast

from envs.errors import TaudojoError
from envs.types import Message, StopReason, Task
from envs.users.base import ToolUser, User, UserReply

#: What a customer reads off a letter or a screen: emails, user ids, order ids, phone numbers, item ids, zip codes, reservations.
_ID = re.compile(
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\b[a-z]+_[a-z]+_\d+\b|#?\bW\d{7}\b|\b\d{3}-\d{3}-\d{4}\b|\b\d{10}\b|\b\d{5}\b"
    r"|\b(?=[A-Z0-9]*\d)[A-Z0-9]{6}\b"
)
#: Lower-case words that are not part of an address or an id: names and codes are never mistyped.
_WORD = re.compile(r"(?<![\w@.#+-])[a-z]{4,}(?![\w@+-]|\.\w)")

_OTHER_TOPICS = (
    "By the way, are your stores open on Sundays?",
    "Sorry, one other thing first: do you have a loyalty program?",
    "Hold on, can you tell me what the weather will be like tomorrow?",
    "Before we go on, how long have you been working there?",
    "Oh, and my neighbor said you are hiring. Is that true?",
)
_GOODBYE = "Sorry, I have to leave now. ###STOP###"


class NoisyUser:
    """`inner` with faults.

    Args:
        typo_rate, topic_change_rate, early_stop_rate: The share of replies with this fault.
        wrong_id_rate: The share of ids that are wrong at first.

    Raises:
        TaudojoError: a rate is not between 0 and 1.
    """

    def __init__(
        self,
        inner: User,
        typo_rate: float = 0.1,
        wrong_id_rate: float = 0.1,
        topic_change_rate: float = 0.05,
        early_stop_rate: float = 0.01,
    ) -> None:
        self.inner = inner
        self._rates = {
            "typo": typo_rate,
            "wrong_id": wrong_id_rate,
            "topic_change": topic_change_rate,
            "early_stop": early_stop_rate,
        }
        for name, rate in self._rates.items():
            if not 0 <= rate <= 1:
                raise TaudojoError(f"The noisy user's {name}_rate is {rate}; give it a share between 0 and 1.")
        self._start(None, "")

    def _start(self, seed: int | None, task_id: str) -> None:
        # A stream for each fault: changing one rate leaves the others' faults where they were.
        self._streams = {
            fault: random.Random() if seed is None else random.Random(f"{seed} {task_id} {fault}") for fault in self._rates
        }
        self._given: set[str] = set()
        self._correction = ""
        self._digressed = False

    def reset(self, task: Task, seed: int | None) -> None:
        self._start(seed, task.id)
        self.inner.reset(task, seed)

    def opening(self) -> UserReply | Awaitable[UserReply]:
        return self._after(self.inner.opening())

    def reply(self, message: str) -> UserReply | Awaitable[UserReply]:
        """An awaitable where the wrapped customer's answer is one."""
        interjection = self._interjection() if message else None
        return interjection or self._after(self.inner.reply(message))

    def observe(self, results: tuple[Message, ...]) -> None:
        cast(ToolUser, self.inner).observe(results)

    def _after(self, said: UserReply | str | Awaitable[UserReply | str]) -> UserReply | Awaitable[UserReply]:
        if isinstance(said, UserReply | str):
            return self._disturbed(said)

        async def later() -> UserReply:
            return self._disturbed(await said)

        return later()

    def _happens(self, fault: str) -> bool:
        return self._streams[fault].random() < self._rates[fault]

    def _interjection(self) -> UserReply | None:
        """What the customer says instead of an answer."""
        leaves, digresses = self._happens("early_stop"), self._happens("topic_change")
        if leaves:
            return UserReply(_GOODBYE, StopReason.USER_STOP)
        self._digressed = digresses and not self._digressed  # never twice in a row, or nothing would be done
        return UserReply(self._streams["topic_change"].choice(_OTHER_TOPICS)) if self._digressed else None

    def _disturbed(self, reply: UserReply | str) -> UserReply:
        reply = UserReply(reply) if isinstance(reply, str) else reply
        mistypes, errs = self._happens("typo"), self._happens("wrong_id")
        if reply.actions:
            return reply
        text = self._mistyped(reply.text) if mistypes else reply.text
        new = next((found for found in _ID.findall(text) if found not in self._given), None)
        self._given.update(_ID.findall(text))
        correction, self._correction = self._correction, ""
        if errs and new is not None and reply.stop is None:
            wrong = self._one_character_off(new)
            text = text.replace(new, wrong)
            self._correction = f"Sorry, I told you {wrong}, but it is {new}."
        if correction and reply.stop is None:
            text = f"{correction} {text}"
        return replace(reply, text=text)

    def _mistyped(self, text: str) -> str:
        """About every eighth word, and at least one, with two letters swapped, one lost, or one doubled."""
        luck = self._streams["typo"]
        words = list(_WORD.finditer(text))
        for word in sorted(luck.sample(words, min(len(words), 1 + len(words) // 8)), key=lambda w: -w.start()):
            at = word.start() + luck.randrange(1, len(word[0]) - 1)
            here, following = text[at], text[at + 1]
            text = text[:at] + luck.choice((following + here, following, here + here + following)) + text[at + 2 :]
        return text

    def _one_character_off(self, found: str) -> str:
        """Digits become other digits; an id without any gets another letter."""
        luck = self._streams["wrong_id"]
        local = found.split("@")[0]
        places = [n for n, c in enumerate(local) if c.isdigit()] or [n for n, c in enumerate(local) if c.isalpha()]
        at = luck.choice(places)
        others = "0123456789" if found[at].isdigit() else "abcdefghijklmnopqrstuvwxyz"
        return found[:at] + luck.choice([c for c in others if c != found[at].lower()]) + found[at + 1 :]
