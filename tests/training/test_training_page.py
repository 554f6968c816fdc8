"""docs/training.md: its commands compose, and the keys that it names are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from training.compose import known_keys, load, options
from training.config import AlgorithmSection

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()
COMMANDS = re.findall(r"^\S*python -m training\.main (.+?)(?:\s+#.*)?$", PAGE, re.MULTILINE)


def test_there_are_commands_on_the_page():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("resume=")])
def test_a_command_composes(command: str):
    load(shlex.split(command))


def test_every_key_that_is_named_is_a_key_or_a_group_s_choice():
    keys, sections = set(known_keys()), {key.partition(".")[0] for key in known_keys() if "." in key}
    named = set(re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_.]+?)[=`]", PAGE))
    assert len(named) > 30
    assert named - keys - {"user.settings.base_url"} == set()
    for group, choices in re.findall(r"`(env|reward|user|cluster|algorithm)=([a-z_\\|]+)`", PAGE):
        assert set(re.split(r"\W+", choices)) <= set(options(group)), group


@pytest.mark.parametrize("field", ["advantage", "loss", "aggregation"])
def test_every_algorithm_of_the_configuration_is_explained(field: str):
    section = PAGE.split("## What each algorithm key does")[1].split("\n## ")[0]
    assert [name for name in get_args(AlgorithmSection.model_fields[field].annotation) if f"`{name}`" not in section] == []
