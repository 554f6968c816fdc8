"""A customer without a language model: says what the scenario says, confirms what the agent names, answers from known facts.

It reads only the scenario's text, so it plays official tasks and generated ones alike, and knows no id that the text does
not give. In telecom it has the phone in the hand (`envs/telecom/phone_user.py`). The same conversation always goes on alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from envs.types import Message, StopReason, Task
from envs.users.base import UserReply

if TYPE_CHECKING:
    from envs.telecom.phone_user import PhoneUser

#: Characters of a confirmation that the customer still repeats; an untrained agent may write without end.
_LONGEST = 600

STOP, TRANSFER = "###STOP###", "###TRANSFER###"

#: What an agent may ask for, and which sentences of the scenario answer it.
_TOPICS = tuple(
    (re.compile(asked, re.IGNORECASE), re.compile(told, re.IGNORECASE))
    for asked, told in (
        (
            r"e-?mail|\bname\b|\bzip\b|postal|identi|verify|who are you",
            r"@|e-?mail|\bname\b|\bzip|\b\d{5}\b|^you(?:'re| are) [A-Z]",
        ),
        (r"order (?:id|number)|which order|what order|your order", r"#?W\d{7}|\border"),
        (r"\bpay|\bcard\b|refund|payment", r"\bcard\b|paypal|\bpay|refund|original"),
        (r"reason|\bwhy\b", r"because|mistake|no longer|not need|since|reason"),
        (r"address|where", r"address|street|avenue|drive|road|lane|suite|zip"),
    )
)
_CONFIRM = re.compile(
    r"\bconfirm\b(?! your (?:e-?mail|name|zip|identity))|yes/no|(?:say|reply|answer|type) yes|proceed|go ahead"
    r"|(?:would you like|do you want) me to|(?:shall|should|may) i\b|is (?:that|this) (?:ok|okay|right|correct|fine)",
    re.IGNORECASE,
)
_ANNOUNCED = re.compile(
    r"\bI(?:'ll| will| can| am going to|'m going to)\s+(?P<action>.+?)[.?!,]*\s*"
    r"(?:(?:Do|Would|Could|Can|Shall|Should|May|Is|Are|Please|Confirm|To confirm)\b[^?]*\?.*|Please confirm.*)?$",
    re.DOTALL,
)
_TRANSFER = re.compile(r"\btransferr(?:ed|ing)\b|\btransfer you\b|human agent", re.IGNORECASE)
_NOTHING_ELSE = re.compile(r"anything else|something else|further (?:help|assistance)", re.IGNORECASE)
_LATER = re.compile(
    r"\b(?:I will|I'll|let me|one moment|please (?:wait|hold)|I am (?:checking|looking)|I'm (?:checking|looking))\b",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"\?|\b(?:please|could you|can you) (?:provide|tell|give|share|specify|confirm|state|let me know)\b", re.IGNORECASE
)
#: Sentences that tell the customer how to behave.
_DIRECTION = re.compile(r"\b(?:if|when|once|unless)\b.*\bagent\b|^(?:make sure|do not|don't|ask the agent)\b", re.IGNORECASE)
_ORDER_ID = re.compile(r"#?W\d{7}")


class ScriptedUser:
    """Deterministic; `seed` changes nothing.

    Args:
        max_replies: The customer ends the conversation with this reply at the latest.
        max_phone_replies: The same in telecom, where a problem is solved in many small steps; what is done with the phone is
            not counted.
    """

    def __init__(self, max_replies: int = 10, max_phone_replies: int = 40) -> None:
        self.max_replies = max_replies
        self.max_phone_replies = max_phone_replies

    def reset(self, task: Task, seed: int | None) -> None:
        told = task.instructions
        self._reason = _sentences(told.get("reason_for_call"))
        self._known = _sentences(told.get("known_info"))
        self._more = _sentences(told.get("task_instructions"))
        self._facts = [*self._known, *_sentences(told.get("unknown_info")), *self._reason, *self._more]
        self._order_ids = {found.lstrip("#") for fact in self._facts for found in _ORDER_ID.findall(fact)}
        self._said: list[str] = []
        self._revealed_more = False
        # An earlier conversation that ends with the agent's words is gone on with by saying what is wanted now.
        self._goes_on = bool(task.history) and task.history[-1].role == "assistant"
        self._phone = _phone_user(task)

    def opening(self) -> str:
        """The reason for the call and who is calling. What the scenario says about the agent's behaviour stays unsaid."""
        sentences = [s for s in (*self._reason, *self._known) if not _DIRECTION.search(s)]
        return _in_first_person(sentences or self._reason or self._more) or "Hello, I need some help."

    def reply(self, message: str) -> UserReply:
        if self._goes_on:
            self._goes_on = False
            return UserReply(self.opening())
        if self._phone is None:
            return self._talk(message)
        reply = self._phone.reply(message) or self._talk(message)
        return (self._phone.goodbye() or reply) if reply.stop is StopReason.USER_STOP else reply

    def observe(self, results: tuple[Message, ...]) -> None:
        """What the phone showed."""
        if self._phone is not None:
            self._phone.observe(results)

    def _talk(self, message: str) -> UserReply:
        self._said.append(message)
        if _TRANSFER.search(message):
            return UserReply(TRANSFER, StopReason.TRANSFER)
        most = self.max_replies if self._phone is None else self.max_phone_replies
        if len(self._said) >= most or self._said.count(message) > 2 or _NOTHING_ELSE.search(message):
            return _goodbye()
        if _CONFIRM.search(message):
            return UserReply(self._confirmation(message))
        if _ASKS.search(message):
            return UserReply(self._answer(message))
        return UserReply("OK, please go ahead.") if _LATER.search(message) else _goodbye()

    def _confirmation(self, message: str) -> str:
        named = {found.lstrip("#") for found in _ORDER_ID.findall(message)}
        if named and self._order_ids and not named & self._order_ids:
            return f"No, that is not what I asked for. {_in_first_person(self._reason)}"
        announced = _ANNOUNCED.search(message[:_LONGEST])
        action = _swap_persons(announced["action"].strip()) if announced and len(message) <= _LONGEST else "go ahead"
        return f"Yes, please {action}."

    def _answer(self, question: str) -> str:
        wanted = [told for asked, told in _TOPICS if asked.search(question)]
        facts = [fact for fact in self._facts if any(told.search(fact) for told in wanted)]
        if not facts and not self._revealed_more:
            self._revealed_more = True
            facts = [*self._reason, *self._more]
        return _in_first_person(dict.fromkeys(facts)) or "I have told you all I know."


def _phone_user(task: Task) -> PhoneUser | None:
    if task.domain != "telecom":
        return None
    from envs.telecom.phone_user import PhoneUser  # it needs this package's base

    return PhoneUser(task)


def _goodbye() -> UserReply:
    return UserReply(f"That is all, thank you. {STOP}", StopReason.USER_STOP)


def _sentences(text: str | None) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+", (text or "").strip()) if s.strip(" .")]


_PERSONS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"\b[Yy]ou name is\b", "my name is"),
        (r"\b[Yy]ou are\b", "I am"),
        (r"\b[Yy]ou're\b", "I'm"),
        (r"\b[Yy]ou were\b", "I was"),
        (r"\b[Yy]ou(?='(?:ve|d|ll)\b)", "I"),
        (r"\b[Yy]ourself\b", "myself"),
        (r"\b[Yy]ours\b", "mine"),
        (r"\b[Yy]our\b", "my"),
        (r"\b(asks?|tells?|gives?|helps?|lets?|sends?|allows?|gets|inform|for|to|with|of|from|than) you\b", r"\1 me"),
        (r"\b[Yy]ou\b", "I"),
    )
)


def _in_first_person(sentences: Iterable[str]) -> str:
    """`You want …` becomes `I want …`; each sentence begins with a capital."""
    turned = []
    for sentence in sentences:
        for pattern, words in _PERSONS:
            sentence = pattern.sub(words, sentence)
        turned.append(sentence[:1].upper() + sentence[1:])
    return " ".join(turned)


def _swap_persons(text: str) -> str:
    """The agent's `your` is the customer's `my`."""
    return re.sub(r"\byou\b", "me", re.sub(r"\byour\b", "my", text))
