"""A benchmark's command, and a part of it in a process of its own: what goes in and out are two JSON files.

    figures = run_module("benchmarks.ours_learner", {"kind": "tree", …}, limit_s=600)      # in the benchmark
    job_main(run)                                                                          # at the end of that module

Neither side's libraries, threads or memory are seen by the other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.errors import TaudojoError

ROOT = Path(__file__).resolve().parent.parent


def say(text: str) -> None:
    """Progress, on stderr: stdout belongs to the result."""
    print(text, file=sys.stderr, flush=True)


def run_command(measure: Callable[[], Mapping[str, Any]]) -> int:
    """A benchmark's exit status: 0 after its result as the last line, 2 for what its user can mend, 130 after Ctrl-C."""
    try:
        result = measure()
    except TaudojoError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("Interrupted; nothing was measured.")
        return 130
    print(json.dumps(result))
    return 0


def run_module(
    module: str, job: Mapping[str, Any], limit_s: float, advice: str = "", environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Runs `python -m module JOB RESULT` and reads the result; what it prints goes to stderr.

    Raises:
        TaudojoError: it failed, or was not done after `limit_s`; `advice` ends the sentence.
    """
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file = Path(folder, "job.json"), Path(folder, "result.json")
        job_file.write_text(json.dumps(job))
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(job_file), str(result_file)],
            cwd=ROOT,
            stdout=sys.stderr,
            start_new_session=True,
            env=os.environ | dict(environment or {}),
        )
        try:
            status = process.wait(timeout=max(limit_s, 0))
        except subprocess.TimeoutExpired:
            raise TaudojoError(f"{module} was not done after {limit_s / 60:.0f} minutes; {advice}") from None
        finally:
            _end(process)
        if status != 0:
            raise TaudojoError(f"{module} ended with status {status}; what it said stands above.")
        return json.loads(result_file.read_text())


def job_main(run: Callable[[dict[str, Any]], Mapping[str, Any]], arguments: Sequence[str] | None = None) -> None:
    """The command of a part: read the job from the first file, write the result to the second."""
    job_file, result_file = map(Path, sys.argv[1:] if arguments is None else arguments)
    try:
        result_file.write_text(json.dumps(run(json.loads(job_file.read_text()))))
    except TaudojoError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the part and what it started, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
