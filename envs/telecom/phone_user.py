"""What a scripted customer does with the phone: carries out what the agent asks for and tells what the phone shows.

>>> user = PhoneUser(task)
>>> user.reply("Please turn off airplane mode.")
UserReply('', actions=(Action('check_network_status', requestor='user'),))

Then, as for every customer, `observe` the results and ask again with `reply("")`, until there is an answer in words. `reply` is
None where the agent asks for nothing that the phone, or the scenario's facts about it, can answer.

The customer looks before using a switch, so that "turn it off" never turns it on, and tries whether the problem is solved
before hanging up (`goodbye`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from envs.telecom.requests import Step, steps
from envs.telecom.user_tools import TelecomUserTools
from envs.types import Action, Message, StopReason, Task
from envs.users.base import UserReply

#: Steps that one message of the agent may bring about; an untrained agent may write without end.
_MOST_STEPS = 10
#: How often the customer answers a farewell with "it does not work".
_MOST_COMPLAINTS = 2

#: Where a switch's state is to be seen: the tool that shows it, what it shows when the switch is on, and the switch's name.
_SWITCHES: Mapping[str, tuple[str, str, str]] = {
    "toggle_airplane_mode": ("check_network_status", "Airplane Mode: ON", "Airplane Mode"),
    "toggle_data": ("check_network_status", "Mobile Data Enabled: Yes", "Mobile Data"),
    "toggle_roaming": ("check_network_status", "Data Roaming Enabled: Yes", "Data Roaming"),
    "toggle_wifi": ("check_network_status", "Wi-Fi Radio: ON", "Wi-Fi"),
    "toggle_data_saver_mode": ("check_data_restriction_status", "Data Saver mode is ON", "Data Saver"),
    "toggle_wifi_calling": ("check_wifi_calling_status", "turned ON", "Wi-Fi Calling"),
}

#: How the customer finds out whether the problem is solved: what the scenario is about, the tool, what it shows then.
_PROOFS = (
    (re.compile(r"\bMMS\b"), "can_send_mms", re.compile(r"\bcan send\b")),
    (re.compile(r"mobile data|internet speed"), "run_speed_test", re.compile(r"\(Excellent\)")),
    (re.compile(r"No Service|signal"), "check_status_bar", re.compile(r"Status Bar: 📶")),
)

#: What an agent may ask for about the customer, and which sentences of the scenario answer it.
_FACTS = tuple(
    (re.compile(asked, re.IGNORECASE), re.compile(told, re.IGNORECASE))
    for asked, told in (
        (r"phone number|which (?:number|line)|what number", r"phone number"),
        (
            r"\babroad\b|travel|\blocat|where are you|outside (?:your|the)|another country|are you .*roaming",
            r"currently (?:abroad|at)",
        ),
        (
            r"how (?:much|many)|refuel|(?:change|different|another|other|upgrade).*\bplan\b|would you (?:like|prefer)",
            r"refuel|\bplan\b",
        ),
    )
)
_ASKS = re.compile(r"\?|\bplease (?:provide|tell|give|share|specify|state|confirm|let me know)\b|\bneed your\b", re.IGNORECASE)
_CONFIRM = re.compile(r"\bconfirm\b(?! your)|yes/no|proceed|go ahead", re.IGNORECASE)


class PhoneUser:
    """The customer of one conversation."""

    def __init__(self, task: Task) -> None:
        told = task.instructions
        self._sentences = [
            sentence
            for part in ("known_info", "task_instructions")
            for sentence in re.split(r"(?<=[.!?])\s+", (told.get(part) or "").strip())
        ]
        problem = told.get("reason_for_call") or told.get("task_instructions") or ""
        self._proof = next((proof for proof in _PROOFS if proof[0].search(problem)), None)
        self._steps: list[Step] = []
        self._awaited: Step | None = None  # the step whose call was made last
        self._looking = False  # that call is a look before using a switch
        self._looked = False  # the switch of the first step was looked at
        self._answers: list[str] = []
        self._leaving = False
        self._solved = False
        self._complaints = 0

    def reply(self, message: str) -> UserReply | None:
        """What the customer does or says; None where it is for others to answer. `""` goes on after `observe`."""
        if message:
            self._steps = list(steps(message)[:_MOST_STEPS])
            self._awaited, self._looking, self._looked, self._answers, self._leaving = None, False, False, [], False
            return self._next() if self._steps else self._fact(message)
        return self._next()

    def observe(self, results: tuple[Message, ...]) -> None:
        """What the phone showed."""
        shown = (results[0].content or "") if results else ""
        step, self._awaited = self._awaited, None
        if step is None:
            return
        if self._proof is not None and step.tool == self._proof[1]:
            self._solved = bool(self._proof[2].search(shown))
        elif step.tool in TelecomUserTools.mutating:
            self._solved = False  # a change may have undone what was proven
        if self._looking:
            self._look_at_switch(shown)
        else:
            self._looked = False
            self._answers.append(shown)

    def goodbye(self) -> UserReply | None:
        """What comes before hanging up: a try whether the problem is solved. None where the customer may hang up."""
        if self._proof is None or self._solved or self._complaints >= _MOST_COMPLAINTS:
            return None
        self._leaving, self._answers = True, []
        self._steps = [Step(self._proof[1])]
        return self._next()

    def _next(self) -> UserReply:
        if not self._steps:
            return self._farewell() if self._leaving else UserReply(spoken(self._answers))
        step = self._steps[0]
        self._looking = step.wanted is not None and not self._looked
        self._awaited = Step(_SWITCHES[step.tool][0]) if self._looking else self._steps.pop(0)
        return UserReply("", actions=(Action(self._awaited.tool, dict(self._awaited.arguments), "user"),))

    def _look_at_switch(self, shown: str) -> None:
        step = self._steps[0]
        _, sign, name = _SWITCHES[step.tool]
        if (sign in shown) is step.wanted:
            self._answers.append(f"{name} is already {'ON' if step.wanted else 'OFF'}.")
            self._steps.pop(0)
        else:
            self._looked = True

    def _farewell(self) -> UserReply:
        if self._solved:
            return UserReply("It works now, thank you. ###STOP###", StopReason.USER_STOP)
        self._complaints += 1
        return UserReply(f"My problem is not solved yet. {spoken(self._answers)}")

    def _fact(self, message: str) -> UserReply | None:
        if not _ASKS.search(message) or _CONFIRM.search(message):
            return None
        wanted = [told for asked, told in _FACTS if asked.search(message)]
        facts = [sentence for sentence in self._sentences if any(told.search(sentence) for told in wanted)]
        return UserReply(_mine(" ".join(facts))) if facts else None


#: The end of a line, with what it ends with and the dash of the next line in a list.
_LINE_END = re.compile(r"([.:]?)\n[ -]*")
#: How Python writes a member of an enumeration.
_LEVEL = re.compile(r"<\w+\.\w+: ('\w+')>")


def spoken(answers: list[str]) -> str:
    """The tools' answers in the customer's words. Of the status bars that changes show, the last is enough."""
    told = [answer.partition("\nStatus Bar: ")[0] for answer in answers[:-1]] + answers[-1:]
    return " ".join(_sentence(answer) for answer in told)


def _sentence(answer: str) -> str:
    text = _LINE_END.sub(lambda end: f"{end[1] or ';'} ", answer.removeprefix("Error: "))
    text = _mine(_LEVEL.sub(r"\1", text))
    if answer.startswith("Error: "):
        text = f"That did not work: {text}"
    return text if text.endswith((".", "!", "?", ".)")) else f"{text}."


_PERSONS = (
    (re.compile(r"\b[Yy]ou are\b"), "I am"),
    (re.compile(r"\bYour\b"), "My"),
    (re.compile(r"\byour\b"), "my"),
    (re.compile(r"\b[Yy]ou\b"), "I"),
)


def _mine(text: str) -> str:
    for pattern, words in _PERSONS:
        text = pattern.sub(words, text)
    return text
