"""What an agent's words ask a customer to do on the phone: from text to steps, by rules, the same every time.

>>> steps("Please turn off airplane mode, then check your status bar.")
(Step('toggle_airplane_mode', wanted=False), Step('check_status_bar'))

The rules know the words of τ²-bench's manuals and the names of the tools. What the agent says of itself ("I will enable
roaming"), what it forbids and what it only supposes ("if it is on, …") are no requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One thing to do. `wanted` is where a switch should be; None for a plain call of the tool."""

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    wanted: bool | None = None


def steps(message: str) -> tuple[Step, ...]:
    """What `message` asks for, in its order; nothing twice in a row."""
    found: list[Step] = []
    topic: _Topic | None = None
    for clause in _clauses(message):
        topics = list(_topics(clause.text))
        if not topics and topic is not None and _POINTS_BACK.search(clause.text):
            topics = [topic]
        if not topics:
            continue
        topic = topics[-1]
        for named in topics if clause.asks else ():
            for step in named(clause):
                if not found or step != found[-1]:
                    found.append(step)
    return tuple(found)


@dataclass(frozen=True)
class _Clause:
    """A piece of a sentence, in lower case, that asks for one thing or a few of the same kind."""

    text: str
    question: bool

    @property
    def asks(self) -> bool:
        """Whether the customer is meant to do or to tell something."""
        if _OWN.search(self.text) and not _ADDRESSED.search(self.text):
            return False
        return not _SUPPOSED.search(self.text) and not _FORBIDDEN.search(self.text)

    @property
    def changes(self) -> bool:
        return self.asks_for(_CHANGE.pattern)

    @property
    def looks(self) -> bool:
        return self.question or self.has(_LOOK.pattern)

    @property
    def states(self) -> list[bool]:
        """The states that a switch is to have, in order: on is True."""
        return [match["on"] is not None for match in _STATE.finditer(self.text)]

    def has(self, pattern: str) -> bool:
        return re.search(pattern, self.text) is not None

    def asks_for(self, pattern: str) -> bool:
        """Whether these words stand here and are not about the past ("did you turn it on?")."""
        return self.has(pattern) and not _PAST.search(self.text)


_Topic = Callable[[_Clause], list[Step]]

_SET = r"(?:turn|switch|toggle|flip|put|set|change|select|choose|update|enable|disable|activate|deactivate|re-?enable)"
_DO = (
    rf"(?:{_SET}|re-?seat|re-?insert|insert|remove|take|reset|re-?start|re-?boot|power|run|re-?run|perform|check|verify|look|see"
    r"|tell|let|make|ensure|pay|accept|approve|grant|give|allow|connect|disconnect|try|send|test|confirm|open|go|use|report)"
)
#: Words that may stand before a verb.
_FILLERS = r"(?:please |then |also |finally |next |you (?:should|can|could|need to|will need to) )*"
_BREAK = re.compile(
    r"\n|[.!;](?=\s|$)|(?<=\?)"
    r"|[.,;:]?\s+(?=please\b)"
    rf"|,?\s+(?:and|then|and then|after that|afterwards)[,:]?\s+(?={_FILLERS}{_DO}\b)"
    rf"|,\s+(?={_FILLERS}{_DO}\b)"
    r"|(?<!check)(?<!know)(?<!\bme)(?<!see)(?<!verify)(?<!confirm)(?<!out),?\s+(?=if\b)"
    r"|,?\s+(?=(?:once|when|unless)\b)"
    r"|,\s+(?=(?:then|wait|off|on|and off|and on|i|i'll)\b)"
)
_OFF_AND_ON = re.compile(
    r"(?:turn|switch|power) (?:off )?(?:your |the )?(?:phone|device)(?: off)?,?(?: and)?(?: then)?(?: (?:turn|switch|power))?"
    r"(?: it)?(?: back)? on(?: again)?"
)
_OWN = re.compile(
    r"^\W*(?:(?:ok|okay|great|thanks|thank you|now|first|next|then|also|so|good|sure|alright|and|but|perfect)\W+)*"
    r"(?:i|i'll|i'm|i've|i'd|we|we'll|we're|we've|let me(?! know))\b"
)
_ADDRESSED = re.compile(r"\byou to\b|\b(?:can|could|would|will) you\b")
_SUPPOSED = re.compile(
    r"^\W*(?:(?:and|but|now|then|so)\W+)*"
    r"(?:if(?! you (?:could|can|would)\b)|when|once|after|unless|while|as soon as|in case|since|because)\b"
)
_FORBIDDEN = re.compile(r"\b(?:don't|do not|never|no need to|not need to|avoid)\b")
_PAST = re.compile(r"^\W*(?:did|have|has|had) you\b")
_LONE_STATE = r"^\W*(?:then |back |and )*(?:on|off)\W*$"
_CHANGE = re.compile(
    rf"\b(?:{_SET}|use|make sure|ensure|needs? to be|should be|must be|has to be)\b|\b(?:toggle|set)_|{_LONE_STATE}"
)
_LOOK = re.compile(
    r"\b(?:check|re-?check|verify|look|see|tell|let me know|confirm|report|show|find out|try|test|run|re-?run|perform"
    r"|do (?:a|another|the)|make sure|ensure|go to|send|whether)\b|\b(?:check|run)_|\bcan_send"
)
_STATE = re.compile(
    r"(?P<off>\boff\b|\bdisabled?\b|\bdeactivated?\b)"
    r"|(?P<on>\b(?:turn|switch|toggle|put)\s+(?:it |them )?(?:back )?on\b"
    r"|\bon\b(?!\s+(?:your|the|this|that|my|its|an?|it|line)\b)|\b(?:re-?)?(?:enable|activate)d?\b)"
)
_POINTS_BACK = re.compile(
    rf"\b(?:{_SET}|re-?seat|re-?insert|insert|remove|take|reset|check|look at|pay|accept|approve|connect|disconnect|grant|give"
    rf"|do|make sure)\b.*\b(?:it|that|this|them)\b|{_LONE_STATE}"
)
_UNQUOTED = str.maketrans({"’": "'", "*": None, "`": None, '"': None})


def _clauses(message: str) -> Iterator[_Clause]:
    text = _OFF_AND_ON.sub("reboot your phone", message.lower().translate(_UNQUOTED))
    for piece in _BREAK.split(text):
        if piece and piece.strip():
            yield _Clause(piece.strip(), piece.rstrip().endswith("?"))


def _topics(text: str) -> Iterator[_Topic]:
    """What the text is about, in its order. A longer name covers the shorter ones in it."""
    found: dict[_Topic, int] = {}
    for pattern, topic in _TOPICS:
        for match in pattern.finditer(text):
            found[topic] = min(match.start(), found.get(topic, len(text)))
        text = pattern.sub(lambda match: " " * len(match[0]), text)
    yield from sorted(found, key=lambda topic: found[topic])


def _switch(toggle: str, look: str) -> _Topic:
    def requested(clause: _Clause) -> list[Step]:
        if clause.changes:
            if clause.states:
                return [Step(toggle, wanted=state) for state in clause.states]
            if clause.has(r"\btoggle"):
                return [Step(toggle)]
        return [Step(look)] if clause.looks else []

    return requested


def _plain(tool: str) -> _Topic:
    return lambda clause: [Step(tool)] if clause.looks or clause.changes else []


def _nothing(clause: _Clause) -> list[Step]:
    return []


def _reboot(clause: _Clause) -> list[Step]:
    return [] if _PAST.search(clause.text) else [Step("reboot_device")]


def _sim(clause: _Clause) -> list[Step]:
    if clause.asks_for(r"re-?seat|re-?insert|\binsert\b|\b(?:remove|take)\b"):
        return [Step("reseat_sim_card")]
    return [Step("check_sim_status")] if clause.looks else []


def _apn(clause: _Clause) -> list[Step]:
    if clause.asks_for(r"(?<!will )(?<!'ll )\breset\b|\breset_apn|\b(?:restore|back to)\b"):
        return [Step("reset_apn_settings")]
    url = re.search(r"\bmmsc\w*\b\D*?(https?://\S+\w)", clause.text)
    if url and clause.changes:
        return [Step("set_apn_settings", {"apn_settings": {"mmsc_url": url[1]}})]
    return [Step("check_apn_settings")] if clause.looks or clause.changes else []


def _vpn(clause: _Clause) -> list[Step]:
    if clause.asks_for(r"\bdisconnect\b|\bdisconnect_|\b(?:stop|quit|close|leave)\b") or (
        clause.changes and False in clause.states
    ):
        return [Step("disconnect_vpn")]
    if clause.asks_for(r"\b(?:re)?connect\b|\bconnect_") or (clause.changes and True in clause.states):
        return [Step("connect_vpn")]
    return [Step("check_vpn_status")] if clause.looks else []


_MODES = {
    "4g_5g_preferred": r"4g_5g_preferred|\b5g\b",
    "4g_only": r"4g_only|\b4g\b|\blte\b",
    "3g_only": r"3g_only|\b3g\b",
    "2g_only": r"2g_only|\b2g\b",
}


def _mode(clause: _Clause) -> list[Step]:
    if clause.changes:
        for mode, pattern in _MODES.items():
            if clause.has(pattern):
                return [Step("set_network_mode_preference", {"mode": mode})]
    return [Step("check_network_mode_preference")] if clause.looks or clause.changes else []


def _permissions(clause: _Clause) -> list[Step]:
    app = _app(clause.text)
    if clause.asks_for(r"\b(?:grant|give|allow|enable|add)\b|\bturn on\b|\bgrant_app"):
        named = [name for name in ("sms", "storage") if clause.has(rf"\b{name}\b")]
        named += [name for name in ("phone", "network") if clause.has(rf"\b{name}'? permission|permission\W+{name}\b")]
        if named:
            in_order = sorted(named, key=clause.text.index)
            return [Step("grant_app_permission", {"app_name": app, "permission": name}) for name in in_order]
    return [Step("check_app_permissions", {"app_name": app})] if clause.looks else []


def _app_status(clause: _Clause) -> list[Step]:
    return [Step("check_app_status", {"app_name": _app(clause.text)})] if clause.looks else []


def _app(text: str) -> str:
    """The app that is named; messaging is what τ²'s problems are about."""
    named = re.search(r"'(\w+)' app\b|\bapp_name\W+(\w+)|\b(browser)\b", text)
    return next(name for name in (*named.groups(), "messaging") if name) if named else "messaging"


def _payment(clause: _Clause) -> list[Step]:
    if clause.asks_for(r"\b(?:pay|make|accept|approve)\b|\bmake_payment"):
        offered = clause.has(r"\b(?:would you like|do you want|are you (?:willing|able|ready))\b")
        return [] if offered else [Step("make_payment")]
    return [Step("check_payment_request")] if clause.looks else []


#: What may be named, longer names before the shorter ones that they contain.
_TOPICS: tuple[tuple[re.Pattern[str], _Topic], ...] = tuple(
    (re.compile(pattern), topic)
    for pattern, topic in (
        (r"https?://\S+", _nothing),
        (r"check_payment_request|make_payment|\bpayment(?: requests?)?\b|\bpay\b", _payment),
        (
            r"(?:toggle|check)_wifi_calling\w*|\bwi-?fi[- ]calling\b",
            _switch("toggle_wifi_calling", "check_wifi_calling_status"),
        ),
        (r"check_app_status|\bapp status\b|\bstatus of (?:the |your )?'?\w+'? app\b", _app_status),
        (
            r"grant_app_permission|check_app_permissions|\bpermissions?\b|\baccess to (?:your |the |its )?(?:sms|storage)\b",
            _permissions,
        ),
        (r"check_installed_apps|\binstalled apps\b|\bapps (?:are |you have )?installed\b", _plain("check_installed_apps")),
        (r"can_send_mms|\bmms\b|\b(?:picture|photo|multimedia|group) messag\w+", _plain("can_send_mms")),
        (r"run_speed_test|\bspeed ?tests?\b|\b(?:internet|data|download|connection) speed\b", _plain("run_speed_test")),
        (
            r"check_status_bar|\bstatus bar\b|\bsignal (?:strength|bars?)\b"
            r"|\b(?:have|any|got|see)(?: an?| any)? (?:cellular )?(?:signal|service|reception)\b",
            _plain("check_status_bar"),
        ),
        (
            r"(?:set|check)_network_mode_preference|\bpreferred network(?: mode| type)?\b"
            r"|\bnetwork (?:mode |type )?preferences?\b|\bnetwork mode\b",
            _mode,
        ),
        (
            r"check_network_status|\b(?:network|connection) (?:status|type|settings)\b|\b(?:cellular|network) connection\b",
            _plain("check_network_status"),
        ),
        (r"toggle_airplane_mode|\b(?:airplane|flight) mode\b", _switch("toggle_airplane_mode", "check_network_status")),
        (
            r"toggle_data_saver_mode|check_data_restriction_status|\bdata[- ]saver(?: mode)?\b|\bdata restrictions?\b",
            _switch("toggle_data_saver_mode", "check_data_restriction_status"),
        ),
        (
            r"\bare you (?:currently )?(?:roaming|abroad|travell?ing)\b|\b(?:mobile |cellular )?data (?:usage|plan|limit)\b",
            _nothing,
        ),
        (r"toggle_roaming|\b(?:data )?roaming\b", _switch("toggle_roaming", "check_network_status")),
        (
            r"toggle_data|\b(?:mobile|cellular) data\b|\b(?:turn|switch) (?:on |off )?(?:your |the )?data\b",
            _switch("toggle_data", "check_network_status"),
        ),
        (r"check_wifi_status|toggle_wifi|\bwi-?fi\b", _switch("toggle_wifi", "check_wifi_status")),
        (r"(?:check|disconnect|connect)_vpn\w*|\bvpn\b", _vpn),
        (r"(?:check|reset|set)_apn_settings|\bapns?\b|\bmmsc(?:[ _]url)?\b", _apn),
        (r"check_sim_status|reseat_sim_card|\bsim\b(?: card)?", _sim),
        (r"reboot_device|\bre-?boot\b|(?<!\ba )(?<!the )(?<!next )\bre-?start\b|\bpower[- ]cycle\b", _reboot),
    )
)
