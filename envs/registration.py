"""Make the domains known to Gymnasium: `gymnasium.make("taudojo/retail-v0", task_id="0")`.

Gymnasium looks for no plugins: the ids are known once `rewards` or this module is imported, or where the id names the module,
as in `gymnasium.make("rewards:taudojo/retail-v0")`. Nothing else of `envs` imports Gymnasium.
"""

from __future__ import annotations

from gymnasium.envs.registration import register as add_to_registry
from gymnasium.envs.registration import registry

from envs.domain import DOMAINS

#: Strings, because the entry points live in a package that `envs` must not import.
ENTRY_POINT, VECTOR_ENTRY_POINT = "rewards.gym:make", "rewards.gym_vector:make_vec"


def register() -> None:
    """Register every domain that is not registered yet."""
    for domain in DOMAINS:
        if (name := f"taudojo/{domain}-v0") not in registry:
            add_to_registry(name, ENTRY_POINT, vector_entry_point=VECTOR_ENTRY_POINT, kwargs={"domain": domain})


register()
