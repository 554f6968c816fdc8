"""Whole checkpoints: a manifest with the sha256 of every file, written last.

A folder without its manifest was not finished; one whose files differ from it was damaged later. Either way it is not loaded.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from envs.errors import TaudojoError

MANIFEST = "manifest.json"


def seal(folder: Path) -> None:
    """Writes the manifest of everything in `folder`."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in _files(folder)
    }
    temporary = folder / f".{MANIFEST}.tmp"
    temporary.write_text(json.dumps(files, indent=1))
    temporary.replace(folder / MANIFEST)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed checkpoint, in a few words; None where it is whole."""
    if not folder.is_dir():
        return "the folder is missing"
    try:
        files = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except ValueError:
        return f"{MANIFEST} cannot be read"
    for name, written in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != written["bytes"]:
            return f"{name} has {size} bytes, {written['bytes']} were written"
        if _sha256(path) != written["sha256"]:
            return f"{name} is not what was written (sha256)"
    return None


def ensure_whole(folder: Path) -> None:
    """Raises TaudojoError where a checkpoint is damaged; one that was never sealed, by an older version, passes."""
    if (folder / MANIFEST).is_file() and (wrong := damage(folder)):
        raise TaudojoError(f"the checkpoint {folder} is damaged: {wrong}; take another, or train it again")


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, f".{MANIFEST}.tmp"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
