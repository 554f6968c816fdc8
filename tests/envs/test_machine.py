"""Memory and cores, where a container, a job or taskset leaves a process less than the machine has."""

from __future__ import annotations

import os
from pathlib import Path

from envs.machine import cores, memory

GIB = 1024**3


def machine(root: Path, membership: str, groups: dict[str, dict[str, str]]) -> Path:
    """A machine with 32 GiB, of which 20 are available, and a process in a cgroup."""
    kib = 1024**2
    files = {"proc/meminfo": f"MemTotal: {32 * kib} kB\nMemAvailable: {20 * kib} kB\n", "proc/self/cgroup": membership}
    files |= {f"sys/fs/cgroup/{group}/{name}": text for group, of_group in groups.items() for name, text in of_group.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(limit: str, used: int, stat: str = "") -> dict[str, str]:
    return {"memory.max": limit, "memory.current": str(used), "memory.stat": stat}


def test_without_a_limit_it_is_the_machine_s(tmp_path: Path):
    assert memory(machine(tmp_path, "0::/user", {"user": group("max", 5 * GIB)})) == (32 * GIB, 20 * GIB)


def test_a_container_s_limit_counts_and_what_it_uses(tmp_path: Path):
    assert memory(machine(tmp_path, "0::/", {".": group(str(8 * GIB), 3 * GIB)})) == (8 * GIB, 5 * GIB)


def test_cached_files_make_room(tmp_path: Path):
    stat = f"anon {GIB}\ninactive_file {3 * GIB // 2}\nactive_file {GIB // 2}"
    assert memory(machine(tmp_path, "0::/", {".": group(str(8 * GIB), 3 * GIB, stat)})) == (8 * GIB, 7 * GIB)


def test_a_job_s_limit_counts_also_where_it_is_set_further_out(tmp_path: Path):
    groups = {"slurm/job_7": group(str(16 * GIB), 14 * GIB), "slurm/job_7/step_0": group(str(12 * GIB), GIB)}
    assert memory(machine(tmp_path, "0::/slurm/job_7/step_0", groups)) == (12 * GIB, 2 * GIB)


def test_cgroups_of_version_1_count(tmp_path: Path):
    limited = {
        "memory.limit_in_bytes": str(8 * GIB),
        "memory.usage_in_bytes": str(4 * GIB),
        "memory.stat": f"total_inactive_file {GIB}",
    }
    found = memory(machine(tmp_path, "5:cpu:/\n4:memory:/docker/abc", {"memory": limited}))
    assert found == (8 * GIB, 5 * GIB)


def test_memory_is_found_on_this_machine_and_what_is_available_is_not_more_than_all():
    total, available = memory()
    assert 0 < available <= total


def test_cores_are_those_that_the_process_may_run_on():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)
