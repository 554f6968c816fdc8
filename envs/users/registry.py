"""Customers by the names that a configuration gives them: `user.name` and `user.settings`.

>>> users = user_factory("noisy", {"user": {"name": "scripted"}, "typo_rate": 0.2}, domain)
>>> env = Env(domain, task, users())

A new kind of customer is a function here and a line in `USERS`.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from envs.domain import Domain
from envs.errors import TaudojoError
from envs.users.base import User
from envs.users.endpoint import ChatEndpoint, EndpointSettings, Usage
from envs.users.llm import AsyncLLMUser, LLMUser
from envs.users.noisy import NoisyUser
from envs.users.scripted import ScriptedUser


@dataclass(frozen=True)
class UserFactory:
    """Makes one customer for each conversation; None is solo mode. `usage` counts for all that a language model plays."""

    make: Callable[[], User | None]
    usage: Usage | None = None

    def __call__(self) -> User | None:
        return self.make()


def user_factory(name: str, settings: Mapping[str, Any], domain: Domain, *, asynchronous: bool = False) -> UserFactory:
    """The customers that a configuration describes.

    Args:
        asynchronous: The caller awaits the words of customers that take time (`Env.ask`).

    Raises:
        TaudojoError: an unknown name or setting, or one that does not fit.
    """
    if name not in USERS:
        raise TaudojoError(f"user.name={name} is not one of {', '.join(USERS)}.")
    return USERS[name](settings, domain, asynchronous)


def usage_of(user: User | None) -> Usage | None:
    """What a customer's conversation used; None where no language model plays them."""
    if isinstance(user, NoisyUser):
        return usage_of(user.inner)
    return user.usage if isinstance(user, LLMUser | AsyncLLMUser) else None


def _scripted(settings: Mapping[str, Any], domain: Domain, asynchronous: bool) -> UserFactory:
    _check("scripted", settings, inspect.signature(ScriptedUser).parameters)
    return UserFactory(lambda: ScriptedUser(**settings))


def _llm(settings: Mapping[str, Any], domain: Domain, asynchronous: bool) -> UserFactory:
    if "api_key" in settings:
        raise TaudojoError("user.settings.api_key is not read: put the key into the environment variable OPENAI_API_KEY.")
    _check("llm", settings, [field.name for field in dataclasses.fields(EndpointSettings)])
    if not settings.get("model"):
        raise TaudojoError("user.settings.model is missing: name the model that plays the customer.")
    endpoint = ChatEndpoint(EndpointSettings(**settings))
    kind = AsyncLLMUser if asynchronous else LLMUser
    kind.of(domain, endpoint)  # a data source without guidelines is told at once
    return UserFactory(lambda: cast(User, kind.of(domain, endpoint)), endpoint.usage)


def _noisy(settings: Mapping[str, Any], domain: Domain, asynchronous: bool) -> UserFactory:
    rates = {key: value for key, value in settings.items() if key != "user"}
    _check("noisy", rates, [name for name in inspect.signature(NoisyUser).parameters if name != "inner"])
    wrapped = settings.get("user") or {"name": "scripted"}
    if not isinstance(wrapped, Mapping) or "name" not in wrapped or wrapped["name"] in ("noisy", "solo"):
        raise TaudojoError(f"user.settings.user is {wrapped!r}: name the customer to disturb, as in {{name: scripted}}.")
    inner = user_factory(wrapped["name"], wrapped.get("settings") or {}, domain, asynchronous=asynchronous)
    NoisyUser(cast(User, inner()), **rates)  # wrong rates are told at once
    return UserFactory(lambda: cast(User, NoisyUser(cast(User, inner()), **rates)), inner.usage)


def _solo(settings: Mapping[str, Any], domain: Domain, asynchronous: bool) -> UserFactory:
    _check("solo", settings, ())
    if domain.solo_policy is None:
        raise TaudojoError(f"user=solo: the domain {domain.name} has no solo mode; choose a customer, or telecom.")
    return UserFactory(lambda: None)


#: Name in the configuration -> builder that is given the settings.
USERS: dict[str, Callable[[Mapping[str, Any], Domain, bool], UserFactory]] = {
    "scripted": _scripted,
    "llm": _llm,
    "noisy": _noisy,
    "solo": _solo,
}


def _check(user: str, settings: Iterable[str], known: Iterable[str]) -> None:
    names = list(known)
    for name in settings:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            hint = f"did you mean {nearest[0]}?" if nearest else "it takes none."
            raise TaudojoError(f"user.settings.{name} is not a setting of the {user} user; {hint}")
