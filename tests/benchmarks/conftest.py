"""Modules that a test writes and a process of its own imports."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def new_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Writes a module's source where child processes find it, and returns its name."""

    def write(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return name

    return write
