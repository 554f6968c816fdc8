"""Who may import whom: between the project's packages arrows point left, and heavy libraries live behind named doors."""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: package -> the packages of this project that it may import, anywhere in its files
MAY_IMPORT = {
    "envs": set(),
    "configs": set(),
    "rewards": {"envs"},
    "rollouts": {"envs", "rewards"},
    "training": {"envs", "rewards", "rollouts", "configs"},
    "evaluation": {"envs", "rewards", "rollouts", "configs"},
    "serving": {"configs"},
    "benchmarks": {"envs", "rewards", "rollouts", "training", "evaluation", "configs"},
    "taudojo": {"envs", "rewards", "rollouts", "training", "evaluation", "serving", "configs"},
}
SHIPPED = set(MAY_IMPORT) - {"benchmarks"}

#: library prefix -> the only files of the shipped packages that may import it
DOORS = {
    "vllm": ["rollouts/engines/vllm*.py", "rollouts/parsers/vllm.py"],
    "deepspeed": ["training/learner/deepspeed.py"],
    "torch.distributed.fsdp": ["training/learner/fsdp.py"],
    "wandb": ["training/tracking.py"],
    "wandb_workspaces": ["training/dashboard.py"],
    "verl.trainer": ["training/verl_backend/*.py"],
    "verl.trainer.ppo.core_algos": ["training/verl_backend/*.py", "training/loss.py"],
}

#: What a researcher's import of envs or rewards must not pull in; the last two may be imported inside functions.
HEAVY = ("torch", "ray", "vllm", "transformers", "hydra", "omegaconf", "datasets", "inspect_ai", "openai")
LAZY_IN_LIGHT_PACKAGES = ("hydra", "omegaconf", "openai")


@dataclass(frozen=True)
class Import:
    """One imported module, as `file:line imports name`."""

    file: str
    line: int
    name: str
    at_import_time: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"

    def is_of(self, prefix: str) -> bool:
        return self.name == prefix or self.name.startswith(prefix + ".")


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Every import in `source`. `if TYPE_CHECKING:` blocks never run, so they are left out."""

    def visit(node: ast.AST, at_import_time: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(file, node.lineno, alias.name, at_import_time)
            case ast.ImportFrom(level=level) if level:
                parent = file.split("/")[:-level]
                yield Import(file, node.lineno, ".".join([*parent, node.module or ""]).rstrip("."), at_import_time)
            case ast.ImportFrom():
                for alias in node.names:
                    yield Import(file, node.lineno, f"{node.module}.{alias.name}", at_import_time)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for child in node.orelse:
                    yield from visit(child, at_import_time)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, False)
            case _:
                for child in ast.iter_child_nodes(node):
                    yield from visit(child, at_import_time)

    return visit(ast.parse(source), True)


def package_imports(package: str) -> list[Import]:
    files = sorted((ROOT / package).rglob("*.py"))
    return [found for file in files for found in imports_of(file.read_text(), file.relative_to(ROOT).as_posix())]


def wrong_way(found: list[Import], package: str) -> list[str]:
    forbidden = (set(MAY_IMPORT) | {"tests"}) - MAY_IMPORT[package] - {package}
    return [str(item) for item in found if any(item.is_of(name) for name in forbidden)]


def through_the_wall(found: list[Import]) -> list[str]:
    """Imports of a guarded library elsewhere than at its doors; the longest matching prefix decides."""
    wrong = []
    for item in found:
        guarded = max((library for library in DOORS if item.is_of(library)), key=len, default=None)
        if guarded and not any(fnmatch.fnmatch(item.file, door) for door in DOORS[guarded]):
            wrong.append(str(item))
    return wrong


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_packages_import_only_what_stands_left_of_them(package: str):
    assert wrong_way(package_imports(package), package) == []


@pytest.mark.parametrize("package", sorted(SHIPPED))
def test_backends_are_imported_only_in_their_own_files(package: str):
    assert through_the_wall(package_imports(package)) == []


def test_vllm_parsers_are_imported_lazily():
    file = ROOT / "rollouts/parsers/vllm.py"
    source = file.read_text() if file.is_file() else ""
    assert [
        str(item) for item in imports_of(source, "rollouts/parsers/vllm.py") if item.is_of("vllm") and item.at_import_time
    ] == []


@pytest.mark.parametrize("package", ["envs", "rewards"])
def test_light_packages_name_no_heavy_library(package: str):
    wrong = [
        str(item)
        for item in package_imports(package)
        for library in HEAVY
        if item.is_of(library) and (item.at_import_time or library not in LAZY_IN_LIGHT_PACKAGES)
    ]
    assert wrong == []


def test_a_forbidden_import_would_be_found():
    source = """
import rollouts.x
if TYPE_CHECKING:
    import torch
def f():
    from rewards import y
    import vllm
    import verl.trainer.ppo.core_algos
"""
    found = list(imports_of(source, "envs/a.py"))
    assert wrong_way(found, "envs") == ["envs/a.py:2 imports rollouts.x", "envs/a.py:6 imports rewards.y"]
    assert through_the_wall(found) == ["envs/a.py:7 imports vllm", "envs/a.py:8 imports verl.trainer.ppo.core_algos"]
    assert [item.at_import_time for item in found] == [True, False, False, False]


ALONE = """
import importlib, pkgutil, sys, time

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
start = time.perf_counter()
import envs, rewards
print(f"import envs, rewards: {{time.perf_counter() - start:.2f}} s")
for package in (envs, rewards):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(f"every module of them: {{time.perf_counter() - start:.2f}} s")

from envs.data import open_source
from envs.domain import load_domain
from envs.env import Env
from envs.types import Action, AgentTurn
from envs.users.scripted import ScriptedUser
from rewards.tau2 import official_reward

mock = load_domain("mock", open_source("packaged"))
env = Env(mock, mock.tasks("base")[0], ScriptedUser())
env.reset()
env.step(AgentTurn(actions=(Action("create_task", {{"user_id": "user_1", "title": "Important Meeting"}}),)))
env.step(AgentTurn("It is done."))
print("official reward:", official_reward(env.task, env.transcript, env).total)
"""


def test_an_episode_is_made_played_and_scored_without_the_training_stack():
    done = subprocess.run([sys.executable, "-c", ALONE.format(heavy=HEAVY)], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)  # the seconds are shown by `pytest -s`, and no test fails for them
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "official reward: 1.0"
