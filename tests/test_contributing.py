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
TESTS = {
    "Add a domain": "library.py",
    "Add a reward": "brevity.py",
    "Add an engine": "count_engine.py",
    "Add a stage": "polish.py",
}
BLOCK = re.compile(r"^```(python|diff)\n# (\S+)\n(.+?)^```$", re.MULTILINE | re.DOTALL)


def change(text: str, diff: str) -> str:
    """`text` with the lines of a diff block applied; its context and `-` lines must be there once."""
    old = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " -")
    new = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] in " +")
    assert text.count(old) == 1, f"not there once:\n{old}"
    return text.replace(old, new)


def test_every_kind_of_extension_has_its_recipe_and_test():
    assert list(RECIPES) == list(TESTS)


@pytest.mark.parametrize("name", TESTS)
def test_a_recipe_is_about_a_page_and_works(tmp_path: Path, name: str):
    recipe = RECIPES[name]
    assert len([line for line in recipe.splitlines() if line.strip()]) <= 75
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "tests" / "contributing" / TESTS[name], tmp_path)
    for kind, file_name, code in BLOCK.findall(recipe):
        file = tmp_path / file_name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code if kind == "python" else change(file.read_text(), code))
    run(tmp_path, "pytest", "-p", "no:cacheprovider", TESTS[name])
    run(tmp_path, "ruff", "check", "--no-cache", *(name for kind, name, _ in BLOCK.findall(recipe) if kind == "python"))


def run(folder: Path, module: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
