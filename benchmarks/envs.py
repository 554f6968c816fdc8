"""Episodes of τ², on our environments and on the tools inside `inspect-evals`.

    python -m benchmarks.envs
    python -m benchmarks.envs --domains retail --tasks 10 --rounds 1      # a quick look
    python -m benchmarks.envs --no-peer                                   # ours alone

An episode is a reset, the task's gold actions, and the official reward; a figure is a mean over *all* base tasks of the domain.
Both sides play the same tasks, each in a process of its own, one after the other, `--rounds` times; the round of median length
counts. Nothing of ours is kept from one episode to the next but what is the same for every agent, the gold end state of a task
among it (`benchmarks.ours_envs`). How the peer is driven stands in `benchmarks.peers.inspect_tau2`. Progress and a table go to
stderr; the last line on stdout is JSON:

    {"retail": {"episode_us", "reset_us", "tool_call_us", "reward_us", "bytes_per_env", "peer_episode_us", "speedup"}, …}

`episode_us` is reset, calls and reward together. `bytes_per_env` is the growth of resident memory over 1,000 live environments,
each after one write, divided by 1,000. What the peer cannot do, or did not, is null, and the table says why.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.episodes import EpisodeFigures, EpisodeWorkload, median_figures
from benchmarks.peers.own_python import ensure_python
from benchmarks.process import run_command
from envs.data import PACKAGE, PACKAGE_VERSION, open_source
from envs.domain import DOMAINS
from envs.errors import TaudojoError

ROOT = Path(__file__).resolve().parent.parent
OURS, PEER = "benchmarks.ours_envs", "benchmarks.peers.inspect_tau2"

#: Passes of a round. An episode of ours is too short to be timed once.
OUR_PASSES, PEER_PASSES = 20, 1
#: One side of one round.
LIMIT_S = 20 * 60

#: Domains that the peer does not have.
NO_PEER = {"mock": "it has no mock domain"}
#: On this it runs. Its newer releases may not run the peer's code.
INSPECT_AI = "inspect-ai==0.3.285"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Comparison:
    """A domain's figures. `reason` says why there is no peer's."""

    ours: EpisodeFigures
    peer: EpisodeFigures | None = None
    reason: str = ""

    @property
    def speedup(self) -> float | None:
        return None if self.peer is None else self.peer.episode_us / self.ours.episode_us

    def to_json(self) -> dict[str, float | None]:
        """The domain's part of the result line."""
        ours = self.ours
        return {
            "episode_us": _rounded(ours.episode_us),
            "reset_us": _rounded(ours.reset_us),
            "tool_call_us": _rounded(ours.tool_call_us),
            "reward_us": _rounded(ours.reward_us),
            "bytes_per_env": None if ours.bytes_per_env is None else round(ours.bytes_per_env),
            "peer_episode_us": _rounded(self.peer.episode_us if self.peer else None),
            "speedup": _rounded(self.speedup),
        }


def peer_python() -> Path:
    """A Python with the peer: this one if it has it, else one of its own.

    Raises:
        TaudojoError: none can be made.
    """
    try:
        if metadata.version(PACKAGE) == PACKAGE_VERSION and metadata.version("inspect-ai"):
            return Path(sys.executable)
    except metadata.PackageNotFoundError:
        pass
    # With our pydantic, so that both sides validate and print with the same one.
    requirements = [f"{PACKAGE}=={PACKAGE_VERSION}", INSPECT_AI, f"pydantic=={metadata.version('pydantic')}"]
    return ensure_python(f"{PACKAGE}-{PACKAGE_VERSION}", requirements)


def run_side(
    python: Path, module: str, work: EpisodeWorkload, on_progress: OnProgress, limit_s: float = LIMIT_S
) -> EpisodeFigures:
    """Run a side in a process of its own and read its figures.

    Raises:
        TaudojoError: it failed, or was not done after `limit_s`.
    """
    with tempfile.TemporaryDirectory() as folder:
        workload_file, figures_file, said_file = (Path(folder, name) for name in ("workload.json", "figures.json", "said"))
        workload_file.write_text(json.dumps(asdict(work)))
        command = [str(python), "-m", module, str(workload_file), str(figures_file)]
        late = threading.Event()
        with (
            said_file.open("w") as said,
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True) as process,
        ):

            def give_up() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(limit_s, give_up)
            timer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    played, slash, episodes = line.strip().partition("/")
                    if slash and played.isdigit() and episodes.isdigit():
                        on_progress(int(played), int(episodes))
                status = process.wait()
            finally:
                timer.cancel()
                process.kill()
        if late.is_set():
            raise TaudojoError(f"{module} was not done with {work.domain} after {limit_s:g} s; use fewer --tasks.")
        if status != 0:
            lines = said_file.read_text(errors="replace").strip().splitlines()
            raise TaudojoError(
                f"{module} ended with status {status} on {work.domain}: {lines[-1] if lines else 'it said nothing'}"
            )
        return EpisodeFigures.read(figures_file)


def compare(work: EpisodeWorkload, python: Path | None, reason: str, rounds: int, bar: Progress) -> Comparison:
    """One domain, both sides in turn. A peer that fails is not asked again.

    Raises:
        TaudojoError: our side failed.
    """
    ours, peer = [], []
    for number in range(1, rounds + 1):
        with _shown(bar, f"{work.domain}, ours, {number} of {rounds}") as on_progress:
            ours.append(run_side(Path(sys.executable), OURS, replace(work, passes=OUR_PASSES), on_progress))
        if python is None:
            continue
        with _shown(bar, f"{work.domain}, {PACKAGE}, {number} of {rounds}") as on_progress:
            try:
                peer.append(run_side(python, PEER, replace(work, passes=PEER_PASSES), on_progress))
            except TaudojoError as error:
                python, peer, reason = None, [], str(error)
    return Comparison(median_figures(ours), median_figures(peer) if peer else None, reason)


@contextmanager
def _shown(bar: Progress, description: str) -> Iterator[OnProgress]:
    """A line of the progress bar for as long as a side runs."""
    line = bar.add_task(description, total=None)
    yield lambda played, episodes: bar.update(line, completed=played, total=episodes)
    bar.remove_task(line)


def table(comparisons: dict[str, Comparison], title: str) -> Table:
    """The figures of both sides, one line each."""
    shown = Table(box=box.SIMPLE, title=title, title_justify="left")
    for heading in ("domain", "side"):
        shown.add_column(heading)
    for heading in (
        "episode µs",
        "reset µs",
        "tool call µs",
        "reward µs",
        "first pass µs",
        "bytes per env",
        "full reward",
        "speedup",
    ):
        shown.add_column(heading, justify="right")
    for domain, found in comparisons.items():
        shown.add_row(domain, "ours", *_cells(found.ours), "" if found.speedup is None else f"{found.speedup:,.0f}×")
        if found.peer is not None:
            shown.add_row("", PACKAGE, *_cells(found.peer), "")
        else:
            shown.add_row("", f"{PACKAGE}: {found.reason}")
    return shown


def _cells(figures: EpisodeFigures) -> list[str]:
    microseconds = (figures.episode_us, figures.reset_us, figures.tool_call_us, figures.reward_us, figures.first_pass_us)
    return [
        *("" if us is None else f"{us:,.1f}" for us in microseconds),
        "" if figures.bytes_per_env is None else f"{figures.bytes_per_env:,.0f}",
        f"{figures.passed} of {figures.episodes}",
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.envs", description="Episodes of τ², ours against inspect-evals.")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=list(DOMAINS), help="all by default")
    parser.add_argument("--rounds", type=_positive, default=3, help="how often both sides play (%(default)s)")
    parser.add_argument("--tasks", type=_positive, help="only so many of a domain's base tasks")
    parser.add_argument("--data-dir", type=Path, help="the folder that contains domains/; the packaged data by default")
    parser.add_argument("--no-peer", action="store_true", help="measure ours alone")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse_arguments(arguments)
    return run_command(lambda: measure(asked))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Both sides in every domain; the table goes to stderr."""
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    comparisons: dict[str, Comparison] = {}
    source = open_source("path" if asked.data_dir else "packaged", asked.data_dir)
    python, reason = _find_peer(asked, console)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        for domain in asked.domains:
            work = EpisodeWorkload(domain, str(source.root), source.source, source.version, asked.tasks)
            missing = NO_PEER.get(domain, reason)
            comparisons[domain] = compare(work, None if missing else python, missing, asked.rounds, bar)
    tasks = "all base tasks" if asked.tasks is None else f"the first {asked.tasks} base tasks"
    console.print(table(comparisons, f"{tasks}, {source.version}, median of {asked.rounds}"))
    return {domain: found.to_json() for domain, found in comparisons.items()}


def _find_peer(asked: Any, console: Console) -> tuple[Path | None, str]:
    """The peer's Python, or why there is none."""
    if asked.no_peer:
        return None, "not asked for"
    if all(domain in NO_PEER for domain in asked.domains):
        return None, ""
    try:
        with console.status(f"{PACKAGE} {PACKAGE_VERSION} (the first time it is installed for itself, some minutes)"):
            return peer_python(), ""
    except TaudojoError as error:
        return None, str(error)


if __name__ == "__main__":
    sys.exit(main())
