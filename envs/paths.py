"""Where downloads live on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$TAUDOJO_CACHE`, else `~/.cache/taudojo`. Not created here."""
    return Path(os.environ.get("TAUDOJO_CACHE") or Path.home() / ".cache" / "taudojo").expanduser()
