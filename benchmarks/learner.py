"""One update of the learner: with the prefix tree, without it, and in TRL.

    python -m benchmarks.learner --model outputs/<run>/sft_model
    python -m benchmarks.learner --trajectories outputs/<run>/trajectories/grpo-0003.jsonl
    python -m benchmarks.learner --official --growth

Episodes are sampled once from an SFT checkpoint (4 tasks × 6 samples of retail, compact prompt), or read from a run. The same
tokens then go through one update of every variant, each in a process of its own, alternated: the tree, packed side by side
without padding, and TRL's GRPOTrainer once (`benchmarks/peers/trl_update.py`). A float32 pass over the first 8,000 tokens
compares gradients and log-probabilities with plain Hugging Face. Progress and tables go to stderr; the last line on stdout is
JSON:

    tokens, unique_tokens   of all episodes, and of their trie; dedup_ratio is the one over the other
    flop_ratio              plain over tree, by `benchmarks/flops.py`: the speed-up that the arithmetic allows
    tree_s, plain_s         seconds of one update, median of the repetitions; …_tokens_per_s divide `tokens` by them
    grad_rel_err            ‖ours − Hugging Face‖ / ‖Hugging Face‖ over all gradients, ours in float32, Hugging Face's in float64
                            (stderr tells the distance from its float32 too); logprob_max_abs from its float32, over all tokens
    peak_rss_ratio          peak resident memory, tree over plain
    mfu_unique              the tree's FLOPs over tree_s × the measured rate of matrix products (gemm_tflops_peak)

What was not measured is null.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.batch import Row, read_batch
from benchmarks.flops import Shape, flop_ratio, work
from benchmarks.grpo import busy_warning, ensure_checkpoint
from benchmarks.process import run_command, run_module, say
from envs.errors import TaudojoError
from training.learner.base import HEAP_ENVIRONMENT

OURS, TRL, SAMPLING = "benchmarks.ours_learner", "benchmarks.peers.trl_update", "benchmarks.sampling"

LIMIT_S = 30 * 60
GROWTH = (4, 16, 64)
GROWTH_TOKENS = 1500

COMPACT = ("env.prompt=compact", "grpo.tasks_per_step=4", "grpo.samples_per_task=6")
OFFICIAL = ("env.prompt=official", "grpo.tasks_per_step=2", "grpo.samples_per_task=4", "model.max_model_len=8192")
MANY = ("env.prompt=compact", "grpo.tasks_per_step=8", "grpo.samples_per_task=8", f"model.max_model_len={GROWTH_TOKENS}")

#: (module, job) → its result; `main` gives `run_module` with the command's time limit.
Run = Callable[[str, dict[str, Any]], dict[str, Any]]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner", description="One update: tree, plain, TRL.")
    parser.add_argument("--model", help="SFT checkpoint, a Hugging Face folder (default: the newest outputs/*/sft_model)")
    parser.add_argument("--trajectories", type=Path, help="train on this file of a run instead of sampling")
    parser.add_argument("--repetitions", type=int, default=3, help="of tree and plain (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=8192, help="episodes are cut to so many tokens (%(default)s)")
    parser.add_argument("--micro-batch-tokens", type=int, help="as in learner.micro_batch_tokens")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of timed updates (%(default)s)")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out")
    parser.add_argument("--official", action="store_true", help="2 tasks × 4 samples, official prompt; times only")
    parser.add_argument("--growth", action="store_true", help="also a table of 4, 16 and 64 episodes of at most 1,500 tokens")
    asked = parser.parse_args(arguments)
    if asked.repetitions < 1:
        parser.error(f"--repetitions is {asked.repetitions}; give it at least 1")
    asked.no_trl = asked.no_trl or asked.official
    return asked


def measure(asked: argparse.Namespace, model: Path, file: Path, run: Run) -> dict[str, Any]:
    """The result line of the episodes in `file`."""
    rows = read_batch(file, asked.max_tokens)
    job = {
        "model": str(model),
        "trajectories": str(file),
        "max_tokens": asked.max_tokens,
        "micro_batch_tokens": asked.micro_batch_tokens,
        "dtype": asked.dtype,
    }
    say(f"{len(rows)} episodes of {sum(len(row.token_ids) for row in rows)} tokens; {model}")
    updates: dict[str, list[dict[str, Any]]] = {"tree": [], "plain": []}
    for repetition in range(asked.repetitions):
        for kind, results in updates.items():
            results.append(run(OURS, job | {"kind": kind}))
            say(
                f"{kind} {repetition + 1}/{asked.repetitions}: {results[-1]['seconds']:.2f} s, "
                f"{results[-1]['computed_tokens']:.0f} tokens computed, {results[-1]['peak_bytes'] / 1e9:.2f} GB at most"
            )
    gemm = run(OURS, job | {"kind": "gemm"})
    exact = None
    if not asked.official:  # Hugging Face keeps more of an episode of 4,700 tokens than 24 GB hold
        exact = run(OURS, job | {"kind": "exact"})
        say(
            f"gradients of {exact['tokens']:.0f} tokens in float32: from Hugging Face's in float64 ours differ by "
            f"{exact['grad_rel_err']:.1e} and its own in float32 by {exact['hugging_face_rel_err']:.1e}; ours from those by "
            f"{exact['grad_rel_err_float32']:.1e}"
        )
    trl = None if asked.no_trl else run(TRL, job)
    return result(Shape.read(model), rows, updates, gemm["tflops"], exact, trl)


def result(
    shape: Shape,
    rows: Sequence[Row],
    updates: dict[str, list[dict[str, Any]]],
    gemm_tflops: float,
    exact: dict[str, Any] | None,
    trl: dict[str, Any] | None,
) -> dict[str, Any]:
    """The result line from what the processes brought."""
    sequences, masks = [row.token_ids for row in rows], [row.loss_mask for row in rows]
    tokens, needed = sum(map(len, sequences)), work(sequences, masks, share=True)
    tree_s, plain_s = (median(r["seconds"] for r in updates[kind]) for kind in ("tree", "plain"))
    tree_peak, plain_peak = (median(r["peak_bytes"] for r in updates[kind]) for kind in ("tree", "plain"))
    trl_rate = trl["tokens"] / trl["seconds"] if trl else None
    return {
        "tokens": tokens,
        "unique_tokens": needed.tokens,
        "dedup_ratio": round(tokens / needed.tokens, 3),
        "flop_ratio": round(flop_ratio(shape, sequences, masks), 3),
        "tree_s": round(tree_s, 3),
        "plain_s": round(plain_s, 3),
        "plain_tokens_per_s": round(tokens / plain_s, 1),
        "tree_tokens_per_s": round(tokens / tree_s, 1),
        "trl_tokens_per_s": round(trl_rate, 1) if trl_rate else None,
        "speedup_vs_plain": round(plain_s / tree_s, 3),
        "speedup_vs_trl": round(tokens / tree_s / trl_rate, 3) if trl_rate else None,
        "grad_rel_err": exact["grad_rel_err"] if exact else None,
        "logprob_max_abs": exact["logprob_max_abs"] if exact else None,
        "peak_rss_ratio": round(tree_peak / plain_peak, 3),
        "gemm_tflops_peak": round(gemm_tflops, 3),
        "mfu_unique": round(needed.flops(shape) / (tree_s * gemm_tflops * 1e12), 3),
    }


def growth(asked: argparse.Namespace, model: Path, file: Path, run: Run) -> list[str]:
    """A Markdown table: the cost of an update follows its unique tokens."""
    lines = ["| episodes | tokens | unique tokens | tree s | s per 1,000 unique | plain s |", "|---|---|---|---|---|---|"]
    available = len(read_batch(file, GROWTH_TOKENS))
    for count in GROWTH:
        if count > available:
            say(f"growth: {file} has {available} episodes, so no row of {count}")
            continue
        rows = read_batch(file, GROWTH_TOKENS, count)
        job = {
            "model": str(model),
            "trajectories": str(file),
            "max_tokens": GROWTH_TOKENS,
            "count": count,
            "micro_batch_tokens": asked.micro_batch_tokens,
            "dtype": asked.dtype,
        }
        tree, plain = (run(OURS, job | {"kind": kind})["seconds"] for kind in ("tree", "plain"))
        sequences, masks = [row.token_ids for row in rows], [row.loss_mask for row in rows]
        tokens, unique = sum(map(len, sequences)), work(sequences, masks, share=True).tokens
        lines.append(f"| {count} | {tokens:,} | {unique:,} | {tree:.2f} | {1000 * tree / unique:.2f} | {plain:.2f} |")
    return lines


def sample(model: Path, overrides: Sequence[str], file: Path, run: Run) -> Path:
    """Plays the episodes of one step into `file`."""
    say("sampling episodes: " + " ".join(overrides))
    run(SAMPLING, {"model": str(model), "overrides": list(overrides), "file": str(file)})
    return file


def limited(end: float) -> Run:
    """`run_module` until `end` of the monotonic clock, with the memory settings of a learner process."""

    def run(module: str, job: dict[str, Any]) -> dict[str, Any]:
        advice = "use fewer --repetitions or --no-trl, or a machine with nothing else to do."
        return run_module(module, job, end - time.monotonic(), advice, HEAP_ENVIRONMENT)

    return run


def main(arguments: Sequence[str] | None = None, run: Run | None = None) -> int:
    """The command; `run` is `run_module` unless a test gives another."""
    asked = parse_arguments(arguments)
    run = run or limited(time.monotonic() + LIMIT_S)

    def measured() -> dict[str, Any]:
        if not asked.no_trl and find_spec("trl") is None:
            raise TaudojoError("TRL is not installed; install the extra `bench` (`make setup` does), or give --no-trl.")
        model = ensure_checkpoint(asked.model)
        if busy := busy_warning(os.getloadavg()[0], os.cpu_count() or 1):
            say(busy)
        with tempfile.TemporaryDirectory() as folder:
            file = asked.trajectories
            if file is None:
                file = sample(model, OFFICIAL if asked.official else COMPACT, Path(folder, "batch.jsonl"), run)
            line = measure(asked, model, file, run)
            if asked.growth:
                many = asked.trajectories or sample(model, MANY, Path(folder, "many.jsonl"), run)
                say("\n".join(growth(asked, model, many, run)))
        return line

    return run_command(measured)


if __name__ == "__main__":
    sys.exit(main())
