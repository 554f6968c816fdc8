"""Play recorded calls again and score them as the official evaluator does.

    python -m rewards.replay --domain retail --data-dir data/tau2 --trajectories recorded.jsonl.gz --out replayed.jsonl

A recording is a line of JSON with `task_id`, `kind`, `calls` (each `requestor`, `name`, `arguments`), `say` (what the agent
says after them) and `termination_reason`. It gives a line with `task_id`, `kind`, `results_sha256` and `errors` of the calls,
`db_hash` and `user_db_hash` after them, the same two of the evaluator's replay (`evaluator_…`) and of its target (`gold_…`),
`db_match`, `reward` (without what an LLM judges; null where the evaluator raises), `components` and `stop_reason`. What the
evaluator does not look at, after an early end or without criteria, is null. A line that cannot be read is reported and left out;
then the exit status is 1.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.data import open_source
from envs.domain import Domain, load_domain
from envs.errors import TaudojoError
from envs.types import Action, StopReason, Task
from rewards.matching import played
from rewards.playback import play_calls
from rewards.tau2 import evaluate

#: τ²'s endings beside those that we call alike.
_STOPS = {
    **{reason.value: reason for reason in StopReason},
    "agent_error": StopReason.TOO_MANY_ERRORS,
    "infrastructure_error": StopReason.ENGINE_ERROR,
    "unexpected_error": StopReason.ENGINE_ERROR,
}
#: Types of a recording's fields.
_FIELDS: dict[str, tuple[type, ...]] = {
    "task_id": (str, int),
    "calls": (list,),
    "termination_reason": (str,),
    "say": (str, type(None)),
    "kind": (str, type(None)),
}


class MalformedLine(Exception):
    """A line that is no recording; the message says why."""


@dataclass(frozen=True)
class Recording:
    """One recorded conversation."""

    task_id: str
    kind: str | None
    calls: tuple[Action, ...]
    say: str
    stop: StopReason

    @classmethod
    def from_line(cls, line: bytes) -> Recording:
        """Read a line. Raises MalformedLine."""
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MalformedLine(f"it is not JSON ({error})") from error
        if not isinstance(raw, dict):
            raise MalformedLine("it is not a JSON object")
        for key, kinds in _FIELDS.items():
            if not isinstance(raw.get(key), kinds):
                raise MalformedLine(f"its {key} is {'of the wrong type' if key in raw else 'missing'}")
        if raw["termination_reason"] not in _STOPS:
            raise MalformedLine(f"its termination_reason {raw['termination_reason']!r} is none of {', '.join(_STOPS)}")
        calls = tuple(_call(number, call) for number, call in enumerate(raw["calls"], start=1))
        return cls(str(raw["task_id"]), raw.get("kind"), calls, raw.get("say") or "", _STOPS[raw["termination_reason"]])


def _call(number: int, raw: Any) -> Action:
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str) or not isinstance(raw.get("arguments"), dict):
        raise MalformedLine(f"its call {number} has no name or no arguments")
    if raw.get("requestor", "assistant") not in ("assistant", "user"):
        raise MalformedLine(f"its call {number} has the requestor {raw['requestor']!r}; it is assistant or user")
    return Action(raw["name"], raw["arguments"], raw.get("requestor", "assistant"))


def replayed(recording: Recording, task: Task, domain: Domain) -> dict[str, Any]:
    """What became of a recording, as the module's docstring describes it."""
    transcript, live = play_calls(task, domain, recording.calls, recording.say, recording.stop)
    verdict = evaluate(task, transcript, domain, keep=True)
    results = [message for message in played(task, transcript) if message.role == "tool"]
    scored = recording.stop.official
    predicted, gold = (verdict.predicted, verdict.gold) if scored else (None, None)
    judged = scored and verdict.error is None and task.raw.get("evaluation_criteria") is not None
    return {
        "task_id": recording.task_id,
        "kind": recording.kind,
        "results_sha256": [_sha256(message.content or "") for message in results],
        "errors": [message.error for message in results],
        "db_hash": live.db_hash(),
        "user_db_hash": live.user_db_hash(),
        "evaluator_db_hash": predicted and predicted.db_hash(),
        "evaluator_user_db_hash": predicted and predicted.user_db_hash(),
        "gold_db_hash": gold and gold.db_hash(),
        "gold_user_db_hash": gold and gold.user_db_hash(),
        "db_match": verdict.parts["db"] if judged else None,
        "reward": verdict.reward,
        "components": verdict.breakdown().to_json()["components"],
        "stop_reason": recording.stop.value,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class DamagedFile(Exception):
    """A file that cannot be read to its end."""


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, plain or compressed by gzip or xz, whatever its name.

    Raises:
        DamagedFile: it breaks off, or is not what its first bytes say.
    """
    try:
        with path.open("rb") as plain:
            start = plain.read(6)
        zipped, xz = start.startswith(b"\x1f\x8b"), start.startswith(b"\xfd7zXZ\x00")
        with gzip.open(path, "rb") if zipped else lzma.open(path, "rb") if xz else path.open("rb") as lines:
            yield from lines
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DamagedFile(str(error)) from error


def replay_file(trajectories: Path, out: Path, domain: Domain) -> tuple[int, int]:
    """Replay all lines of a file; numbers of replayed and of malformed lines. The latter are reported on stderr."""
    tasks = {task.id: task for task in domain.all_tasks}
    done = malformed = number = 0
    with out.open("w", encoding="utf-8") as sink:
        try:
            for number, line in enumerate(lines_of(trajectories), start=1):
                if not line.strip():
                    continue
                try:
                    recording = Recording.from_line(line)
                    if recording.task_id not in tasks:
                        raise MalformedLine(f"there is no task {recording.task_id!r} in {domain.name}")
                    result = replayed(recording, tasks[recording.task_id], domain)
                except (MalformedLine, TaudojoError) as error:
                    malformed += 1
                    print(f"{trajectories}:{number}: line left out: {error}", file=sys.stderr)
                    continue
                sink.write(json.dumps(result) + "\n")
                done += 1
        except DamagedFile as error:
            malformed += 1
            print(f"{trajectories}:{number + 1}: the file cannot be read from here on: {error}", file=sys.stderr)
    return done, malformed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rewards.replay", description="Play recorded calls again and score them.")
    parser.add_argument("--domain", required=True, help="mock, retail, airline or telecom")
    parser.add_argument("--data-dir", type=Path, help="the folder that contains domains/; the packaged data by default")
    parser.add_argument("--trajectories", type=Path, required=True, help="recorded lines: .jsonl, .jsonl.gz or .jsonl.xz")
    parser.add_argument("--out", type=Path, required=True, help="where the replayed lines go")
    chosen = parser.parse_args(arguments)
    try:
        domain = load_domain(chosen.domain, open_source("path" if chosen.data_dir else "packaged", chosen.data_dir))
        if not chosen.trajectories.is_file():
            raise TaudojoError(f"There is no file {chosen.trajectories}.")
        if not chosen.out.parent.is_dir():
            raise TaudojoError(f"There is no folder {chosen.out.parent} to write {chosen.out.name} to.")
        if chosen.out.exists() and chosen.out.samefile(chosen.trajectories):
            raise TaudojoError(f"{chosen.out} is the file to be replayed; write to another.")
        done, malformed = replay_file(chosen.trajectories, chosen.out, domain)
    except TaudojoError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{done} replayed, {malformed} malformed", file=sys.stderr)
    return 1 if malformed else 0


if __name__ == "__main__":
    sys.exit(main())
