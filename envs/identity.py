"""Whether the packages that Python found are this project's own.

`envs`, `training` or `configs` are names that other projects use too. A folder of that name in the working directory, or another
installed package, comes first on Python's path and fails far away from the cause. Entry points and Ray actors ask here first:

>>> ensure_own_packages()
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from envs.errors import TaudojoError

PACKAGES = ("envs", "rewards", "rollouts", "training", "configs")


def ensure_own_packages() -> None:
    """Raise TaudojoError unless all of `PACKAGES` lie in the folder that this file's package lies in. Imports none of them."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        found = _folder(name)
        if found != home / name:
            place = found or "nowhere on Python's path"
            raise TaudojoError(
                f"the package {name} resolves to {place}, but taudojo's own is {home / name}; "
                f"run from another folder, or remove the other {name} from Python's path (PYTHONPATH, pip uninstall)"
            )


def _folder(name: str) -> Path | None:
    if name in sys.modules:
        paths = list(getattr(sys.modules[name], "__path__", ()))
    else:
        spec = importlib.util.find_spec(name)
        paths = list(spec.submodule_search_locations or ()) if spec else []
    return Path(paths[0]).resolve() if paths else None
