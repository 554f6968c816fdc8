"""A run's configuration from the Hydra tree of `configs/`, and errors that name the wrong key and the nearest right one.

config = load(["+experiment=grpo", "seed=3"])
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from envs.errors import TaudojoError
from training.config import RunConfig


def load(overrides: list[str]) -> RunConfig:
    """Composes and validates. Raises TaudojoError that names the wrong key or experiment and the nearest right one."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("configs", version_base="1.3"):
            raw = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise TaudojoError(_composition_message(error, overrides)) from error
    assert isinstance(raw, dict)
    return validate(raw)


def validate(raw: dict[str, Any]) -> RunConfig:
    """A typed config from plain data. Raises TaudojoError that names the key."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise TaudojoError(f"there is no config key {where}{_nearest(where, known_keys())}") from error
        got = "" if isinstance(first.get("input"), dict) else f" (got {first.get('input')!r})"
        raise TaudojoError(f"config key {where or 'of the run'}: {first['msg'].removeprefix('Value error, ')}{got}") from error


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted keys of the typed config."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def options(group: str) -> list[str]:
    """The files of a config group, e.g. `options("experiment")`."""
    import configs

    return sorted(p.stem for p in (Path(configs.__file__).parent / group).glob("*.yaml"))


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _composition_message(error: Exception, overrides: list[str]) -> str:
    """Hydra's error in one sentence with a suggestion."""
    text = str(error)
    missing = re.search(r"Could not find '([\w-]+)/([\w-]+)'", text)
    if missing:
        group, name = missing.groups()
        return f"{group}={name}: there is no such {group}{_nearest(name, options(group))} (have: {', '.join(options(group))})"
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0]
        if override.startswith("experiment="):
            return f"an experiment is added to the base configuration: write +{override}"
        if f"'{key}'" in text or f"'{key.split('.')[-1]}'" in text or override in text:
            if key in known_keys():
                return f"{key}: the value cannot be read; quote it, as in '{key}=\"…\"'"
            return f"there is no config key {key}{_nearest(key, known_keys())}"
    return f"the configuration cannot be composed: {text.splitlines()[0]}"
