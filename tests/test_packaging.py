"""What is shipped, what is pinned, and whose packages are found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {"taudojo", "envs", "rewards", "rollouts", "training", "evaluation", "serving", "configs"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the project's own backend from a copy of the sources: building writes beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
    for name in sorted(SHIPPED | {"tests", "benchmarks", "slurm"}):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, folder], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("taudojo-*.whl"))


def test_the_wheel_ships_the_packages_and_neither_tests_benchmarks_nor_slurm(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names} - {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert top == SHIPPED


def test_the_wheel_has_every_python_and_yaml_file_of_its_packages(wheel: Path):
    shipped = set(zipfile.ZipFile(wheel).namelist())
    files = [file for package in SHIPPED for ending in ("*.py", "*.yaml") for file in (ROOT / package).rglob(ending)]
    assert {file.relative_to(ROOT).as_posix() for file in files} <= shipped


def test_the_wheel_has_the_command_and_the_licence(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "taudojo = taudojo.cli:main" in archive.read(entry_points).decode()
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


@pytest.mark.parametrize("lock", ["cpu.lock", "gpu.lock"])
def test_locks_pin_every_package_and_hold_no_address(lock: str):
    lines = (ROOT / "requirements" / lock).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []


def test_the_cpu_lock_has_cpu_torch_and_none_of_its_cuda_companions():
    names = dict(line.split("==") for line in (ROOT / "requirements/cpu.lock").read_text().splitlines())
    assert names["torch"].endswith("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm"} & set(names)
    assert not [name for name in names if name.startswith("nvidia-")]


def test_the_repository_names_no_package_index_but_pytorchs():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    wrong = []
    for name in tracked.stdout.splitlines():
        file = ROOT / name
        if file.suffix in {".toml", ".lock", ".sh", ".py", ".yaml", ".slurm", ""} and file.is_file():
            for address in re.findall(r"https?://[\w./-]*(?:/simple|/whl)[\w./-]*", file.read_text(errors="ignore")):
                if not address.startswith("https://download.pytorch.org/whl/cpu"):
                    wrong.append(f"{name}: {address}")
    assert wrong == []


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python that starts in `folder`, with our packages on its path."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), RAY_AUTH_MODE="disabled")
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("package", ["envs", "training", "configs"])
def test_somebody_elses_package_of_the_same_name_is_named_and_stops_the_command(tmp_path: Path, package: str):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    done = python(tmp_path, "-m", "taudojo", "data")  # -m puts the working folder first; ours are found behind it
    assert done.returncode == 2
    assert str(tmp_path / package) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_runs_from_any_folder(tmp_path: Path):
    done = python(tmp_path, "-m", "taudojo", "data")
    assert done.returncode == 0, done.stderr


def test_training_runs_from_any_folder_as_far_as_reading_its_configuration(tmp_path: Path):
    done = python(tmp_path, "-m", "training.main", "+experiment=smoky")
    assert done.returncode == 2
    assert "smoke" in done.stderr and len(done.stderr.splitlines()) == 1


RAY_ACTOR = """
import ray

@ray.remote
class Actor:
    def packages(self):
        import configs, envs, rewards, rollouts, training
        from envs.identity import ensure_own_packages

        ensure_own_packages()
        return [module.__file__ for module in (configs, envs, rewards, rollouts, training)]

ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000, logging_level="ERROR")
print(*ray.get(Actor.remote().packages.remote()), sep="\\n")
"""


@pytest.mark.slow
def test_a_ray_actor_finds_our_packages_from_any_folder(tmp_path: Path):
    (tmp_path / "script.py").write_text(RAY_ACTOR)
    done = python(tmp_path, "script.py")
    assert done.returncode == 0, done.stderr
    assert {Path(line).parents[1] for line in done.stdout.splitlines()} == {ROOT}
