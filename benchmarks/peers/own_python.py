"""A Python for a peer whose dependencies do not agree with ours: a virtual environment in the cache folder, made once.

>>> ensure_python("inspect-evals-0.26.0", ["inspect-evals==0.26.0"])
PosixPath('/home/me/.cache/taudojo/peers/inspect-evals-0.26.0/bin/python')
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from envs.errors import TaudojoError
from envs.paths import cache_dir


def ensure_python(name: str, requirements: Sequence[str]) -> Path:
    """The Python of the environment `name`, which is made anew where it is missing, broken or has other requirements.

    Raises:
        TaudojoError: it cannot be made.
    """
    folder = cache_dir() / "peers" / name
    python, finished = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join(requirements)
    if python.exists() and finished.is_file() and finished.read_text() == wanted:
        return python
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])
        finished.write_text(wanted)
    except OSError as error:
        raise TaudojoError(
            f"The environment {name} could not be made in {folder} ({error}); set TAUDOJO_CACHE to a folder with space."
        ) from error
    return python


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else f"status {done.returncode}")
        raise TaudojoError(f"{' '.join(command[1:4])} failed ({reason}); check the network and the pip configuration.")
