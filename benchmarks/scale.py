"""The scheduler from 1 to 8 workers and 64 to 4,096 episodes in flight, against the best that the same load allows.

    python -m benchmarks.scale
    python -m benchmarks.scale --quick        # a minute, to see that it runs

Real rollout workers play real τ² retail episodes in Ray actors: environment, tools, tokenizer, parser, reward. Only the engine is
a fake, which writes the expert's turns at a fixed pace and so many at once, and the scripted customer takes time to answer. Two
loads: 64 episodes or fewer on each worker, where the longest episode decides, and 512 in flight with 320 more waiting, where the
engines' caps do. Progress goes to stderr; the last line on stdout is JSON:

    {"runs": [{"workers", "concurrent", "efficiency", "bytes_per_episode"}], "overhead_ms_per_episode"}

    efficiency               max(longest episode alone, all tokens / all caps) over the wall time
    bytes_per_episode        heap that an episode takes in its worker while it is played, and in the scheduler once it is back
    overhead_ms_per_episode  CPU time of the scheduling process, Ray's threads in it included, over all episodes; stderr also
                             tells what the workers took, playing included
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.grpo import busy_warning
from benchmarks.ours_scale import Pace
from benchmarks.process import run_command, run_module, say

LIMIT_S = 10 * 60

#: 25 tokens/s for each answer, 2,500 tokens/s for an engine; customers answer within 1 to 1.5 s. Eight workers then take half of
#: two cores: with twice the pace the cores would decide, not the scheduler.
PACE = Pace(latency_s=0.2, token_s=0.04, slots=100, user_latency_s=1.0, user_jitter=0.5)

#: (workers, episodes in flight, episodes)
LIGHT = [(1, 64, 64), (8, 64, 64), (4, 256, 256), (8, 512, 512)]
FULL = [(workers, 512 * workers, 832 * workers) for workers in (1, 2, 4, 8)]
QUICK = [(1, 64, 64), (2, 256, 256)]
TASKS = 512

Run = Callable[[str, dict[str, Any]], Mapping[str, Any]]


def result(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The result line from what the runs brought."""
    runs = measured["runs"]
    return {
        "runs": [
            {
                "workers": run["workers"],
                "concurrent": run["concurrent"],
                "efficiency": round(run["ideal_s"] / run["seconds"], 3),
                "bytes_per_episode": round(run["bytes_per_episode"]),
            }
            for run in runs
        ],
        "overhead_ms_per_episode": round(1e3 * sum(r["scheduler_cpu_s"] for r in runs) / sum(r["episodes"] for r in runs), 3),
    }


def main(arguments: Sequence[str] | None = None, run: Run | None = None) -> int:
    """The command; `run` is `run_module` unless a test gives another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="The scheduler against the ideal.")
    parser.add_argument("--quick", action="store_true", help="two small runs")
    asked = parser.parse_args(arguments)
    begin = time.monotonic()

    def limited(module: str, job: dict[str, Any]) -> Mapping[str, Any]:
        # Python's own allocator does not tell how much of its memory is in use; the C library's does.
        environment = {"PYTHONMALLOC": "malloc"}
        return run_module(module, job, LIMIT_S - (time.monotonic() - begin), "use --quick, or an idle machine.", environment)

    def measured() -> dict[str, Any]:
        if busy := busy_warning(os.getloadavg()[0], os.cpu_count() or 1):
            say(busy)
        job = {"pace": asdict(PACE), "runs": QUICK if asked.quick else LIGHT + FULL, "tasks": TASKS}
        return result((run or limited)("benchmarks.ours_scale", job))

    return run_command(measured)


if __name__ == "__main__":
    sys.exit(main())
