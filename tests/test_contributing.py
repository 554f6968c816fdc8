"""The recipes of CONTRIBUTING.md work as they are printed: their files are written, their lines changed, their tests run.

A code block begins with the name of its file. A diff block replaces its `-` lines, or stands after its context line.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("envs", "rewards", "rollouts", "training", "configs")
RECIPES = dict(re.findall(r"^## (Add .+?)\n(.+?)(?=^## |\Z)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"^```(python|diff)\n# (\S+)\n(.+?)^```$", re.MULTILINE | re.DOTALL)


def change(text: str, diff: str) -> str:
    """`text` with the lines of a diff block applied; its context and `-` lines must be there once."""
    old = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " -")
    new = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " +")
    assert text.count(old) == 1, f"not there once:\n{old}"
    return text.replace(old, new)


def test_every_kind_of_extension_has_its_recipe():
    assert list(RECIPES) == ["Add a domain", "Add a reward", "Add an engine"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_under_a_page_and_works(tmp_path: Path, name: str):
    assert len(RECIPES[name].splitlines()) <= 100
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tests = []
    for kind, file_name, code in BLOCK.findall(RECIPES[name]):
        file = tmp_path / file_name
        file.parent.mkdir(parents=True, exist_ok=True)
        if kind == "diff":
            file.write_text(change(file.read_text(), code))
        else:
            file.write_text(code)
            tests += [file_name] if file_name.startswith("tests/") else []
    assert tests, "a recipe brings its test"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lint = [sys.executable, "-m", "ruff", "check", "--no-cache", *tests, *{file for _, file, _ in BLOCK.findall(RECIPES[name])}]
    done = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
