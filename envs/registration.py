"""Make the domains known to Gymnasium: `gymnasium.make("taudojo/retail-v0", task_id="0")`.

Gymnasium finds `register` by itself where the package is installed (entry point group `gymnasium.envs`); in a bare checkout
`gymnasium.make("envs.registration:taudojo/retail-v0")` does the same. Nothing else of `envs` imports Gymnasium.
"""

from __future__ import annotations

from gymnasium.envs.registration import register as add_to_registry
from gymnasium.envs.registration import registry

from envs.domain import DOMAINS

#: A string, because the entry point lives in a package that `envs` must not import.
ENTRY_POINT = "rewards.gym:make"


def register() -> None:
    """Register every domain that is not registered yet."""
    for domain in DOMAINS:
        if f"taudojo/{domain}-v0" not in registry:
            add_to_registry(f"taudojo/{domain}-v0", entry_point=ENTRY_POINT, kwargs={"domain": domain})


register()
