"""Microseconds that a parser takes for one message.

    python -m benchmarks.parsers

Each own parser reads the messages of its family in `tests/rollouts/parser_corpus.jsonl` in turn, `--rounds` times. A message's
time is its median over the rounds; a family's `mean` and `p95` are over its messages. A table goes to stderr; the last line on
stdout is JSON: {"hermes": {"messages", "mean_us", "p95_us"}, …}
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from rollouts.parsers import PARSERS, get_parser

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "rollouts" / "parser_corpus.jsonl"


def microseconds(name: str, texts: Sequence[str], rounds: int) -> list[float]:
    """The median time of each text."""
    parser = get_parser(name)
    times: list[list[int]] = [[] for _ in texts]
    for _ in range(rounds):
        for text, taken in zip(texts, times, strict=True):
            begin = time.perf_counter_ns()
            parser.parse(text)
            taken.append(time.perf_counter_ns() - begin)
    return [statistics.median(taken) / 1000 for taken in times]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parsers", description="Microseconds per parsed message.")
    parser.add_argument("--rounds", type=int, default=200, help="how often each message is read (%(default)s)")
    rounds = parser.parse_args(arguments).rounds
    if rounds < 1:
        parser.error("--rounds must be at least 1")
    lines = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    shown = Table("parser", "messages", "mean µs", "p95 µs", box=box.SIMPLE, title="One message", title_justify="left")
    result = {}
    for name in PARSERS:
        texts = [line["text"] for line in lines if line["parser"] == name]
        taken = microseconds(name, texts, rounds)
        mean, p95 = statistics.fmean(taken), statistics.quantiles(taken, n=20)[-1]
        shown.add_row(name, str(len(taken)), f"{mean:.1f}", f"{p95:.1f}")
        result[name] = {"messages": len(taken), "mean_us": round(mean, 1), "p95_us": round(p95, 1)}
    Console(file=sys.stderr).print(shown)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
