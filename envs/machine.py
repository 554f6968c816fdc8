"""What of this machine a process may use: its cores, and its memory where a container or a SLURM job has a limit.

>>> cores()
2
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

#: The files of a memory cgroup, version 2 and 1: limit, use, and in the use the name of what is only cached files.
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def cores() -> int:
    """The cores that this process may run on: fewer than the machine's under taskset, in a cpuset, and in most SLURM jobs."""
    return len(os.sched_getaffinity(0))


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """(total, available) bytes: the machine's, or those of the tightest limit that this process is under."""
    kib = _numbers(root / "proc/meminfo", separator=":")
    machine, available = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    total = machine
    for folder, (limit_name, use_name, cached) in _cgroups(root):
        text = (folder / limit_name).read_text().strip()
        if not text.isdigit() or int(text) >= machine:  # "max", or version 1's word for it, a very large number
            continue
        # Cached files count as used, though they make room: a run that has just read its model has not used it up.
        of_files = _numbers(folder / "memory.stat")
        used = int((folder / use_name).read_text()) - sum(of_files.get(name, 0) for name in cached)
        total, available = min(total, int(text)), min(available, int(text) - used)
    return total, max(0, available)


def _cgroups(root: Path) -> Iterator[tuple[Path, tuple[str, str, tuple[str, str]]]]:
    """The process's memory cgroup and those around it, innermost first. A container sees its own as the outermost."""
    memberships = root / "proc/self/cgroup"
    for line in memberships.read_text().splitlines() if memberships.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, files = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            top, files = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(top) and (folder / files[0]).is_file():
                yield folder, files


def _numbers(file: Path, separator: str | None = None) -> dict[str, int]:
    """Lines of a name and a number; none where there is no file."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return {name.strip(): int(rest.split()[0]) for name, rest in (line.split(separator, 1) for line in lines)}
