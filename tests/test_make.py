"""What `make` does: an environment is of one platform, and which one it is stays; benchmarks have a checkpoint to start from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FAKE_UV = """#!/bin/bash
if [ "$1" = venv ]; then
    mkdir -p "${@: -1}/bin" && ln -s "$REAL_PYTHON" "${@: -1}/bin/python"
elif [[ "$*" == *.lock* ]]; then
    exit "${UV_STATUS:-0}"
fi
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """install.sh with its locks, and a `uv` that makes empty environments and installs nothing."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(FAKE_UV)
    (tmp_path / "bin" / "uv").chmod(0o755)
    return tmp_path


def install(repository: Path, platform: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = {"PATH": f"{repository / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable, "REAL_PYTHON": sys.executable}
    return subprocess.run(
        ["bash", "requirements/install.sh", ".venv", platform],
        cwd=repository,
        env=os.environ | path | {"INSTALLER": "uv"} | environment,
        capture_output=True,
        text=True,
    )


def stamps(repository: Path) -> list[str]:
    return sorted(path.name for path in (repository / ".venv").glob(".in*"))


def test_an_environment_of_another_platform_is_made_anew(repository: Path):
    install(repository, "cpu")
    (repository / ".venv" / "vllm").touch()
    done = install(repository, "gpu")
    assert done.returncode == 0, done.stderr
    assert "setup: .venv is the cpu environment; making it anew for gpu (VENV=… keeps both)" in done.stdout
    assert not (repository / ".venv" / "vllm").exists()
    assert stamps(repository) == [".installed-gpu"]


def test_an_environment_of_the_same_platform_is_brought_up_to_date(repository: Path):
    install(repository, "gpu")
    (repository / ".venv" / "vllm").touch()
    assert install(repository, "gpu").returncode == 0
    assert (repository / ".venv" / "vllm").exists()
    assert stamps(repository) == [".installed-gpu"]


def test_what_the_installer_gave_up_is_kept_for_its_own_platform_only(repository: Path):
    assert install(repository, "gpu", UV_STATUS="1").returncode == 2
    assert stamps(repository) == [".incomplete-gpu"]
    (repository / ".venv" / "vllm").touch()
    assert install(repository, "gpu", UV_STATUS="1").returncode == 2
    assert (repository / ".venv" / "vllm").exists()
    assert install(repository, "cpu").returncode == 0
    assert not (repository / ".venv" / "vllm").exists()
    assert stamps(repository) == [".installed-cpu"]


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@needs_make
@pytest.mark.parametrize(
    ("installed", "gpu_here", "platform"),
    [("gpu", False, "gpu"), ("cpu", True, "cpu"), (None, True, "gpu"), (None, False, "cpu")],
)
def test_the_platform_is_that_of_the_environment_else_of_the_machine(
    tmp_path: Path, installed: str | None, gpu_here: bool, platform: str
):
    if installed:
        (tmp_path / f".installed-{installed}").touch()
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text(f"#!/bin/sh\nexit {int(not gpu_here)}\n")
    nvidia_smi.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("PLATFORM", "MAKEFLAGS")}
    done = subprocess.run(
        ["make", "--no-print-directory", "--eval=show: ; @echo $(PLATFORM)", "show", f"VENV={tmp_path}"],
        cwd=ROOT,
        env=environment | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{platform}\n", done.stderr


@needs_make
def test_benchmarks_train_a_checkpoint_first_where_there_is_none(repository: Path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, repository)
    python = repository / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$2 $3" >> called\n')  # of `python -m MODULE ARGUMENT`
    python.chmod(0o755)
    (repository / ".venv" / ".installed-cpu").touch()

    def called() -> list[str]:
        (repository / "called").unlink(missing_ok=True)
        subprocess.run(["make", "bench", "VENV=.venv", "PLATFORM=cpu"], cwd=repository, capture_output=True, check=True)
        return [line.strip() for line in (repository / "called").read_text().splitlines()]

    benchmarks = [f"benchmarks.{name}" for name in ("envs", "learner", "scale", "parsers", "rollouts", "grpo")]
    assert called() == ["training.main +experiment=grpo", *benchmarks]
    (repository / "outputs/run/sft_model").mkdir(parents=True)
    (repository / "outputs/run/sft_model/config.json").touch()
    assert called() == benchmarks
