"""One update of the learner, with the prefix tree and without it, on a model of random weights: what a GPU is measured with.

    python -m benchmarks.random_learner qwen3-1.7b --device cuda
    python -m benchmarks.random_learner tiny                       # the same path on a CPU, in seconds

Needs no checkpoint, no sampling, no Ray, vLLM or Hydra, and runs in one process: how long an update takes does not depend on what
the weights are. Four groups of six samples share a prompt, and each group its first turns, about as much as sampled episodes do
(docs/performance.md). The last line on stdout is JSON, with the names of `benchmarks.learner`. Besides:

    tree_peak_gib, plain_peak_gib   the most that torch had allocated on the GPU; null on a CPU
    gemm_tflops_peak                measured on the same device, which mfu_unique is relative to
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.batch import Row
from benchmarks.flops import Shape, flop_ratio, work
from benchmarks.ours_learner import check_alone, gemm_tflops, update
from benchmarks.process import run_command, say
from envs.errors import TaudojoError
from training.learner.base import LearnerConfig
from training.learner.engine import single_process

GROUPS, MEMBERS = 4, 6
#: Of a sample's own tokens the policy writes a turn of so many, the environment the next.
TURN = 40


def _sizes(vocabulary: int, width: int, mlp_width: int, layers: int, heads: int, key_heads: int, head_dim: int) -> dict[str, int]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head_dim,
    }


#: Tokens of the prompt, of a group's shared turns, and of a sample's own, and the sizes of the model.
PRESETS: dict[str, tuple[int, int, int, dict[str, int]]] = {
    "tiny": (50, 30, 50, _sizes(512, 64, 128, 2, 2, 1, 32)),
    "qwen3-1.7b": (500, 300, 300, _sizes(151_936, 2048, 6144, 28, 16, 8, 128)),
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_learner", description="One update on random weights.")
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repetitions", type=int, default=3, help="of tree and plain (%(default)s)")
    return parser.parse_args(arguments)


def random_rows(preset: str) -> list[Row]:
    """Groups that share a prompt and their first turns; half of what is a sample's own is trained on."""
    prompt_tokens, shared, own, sizes = PRESETS[preset]
    rng = np.random.default_rng(0)

    def drawn(tokens: int) -> list[int]:
        return rng.integers(0, sizes["vocab_size"], tokens).tolist()

    prompt, rows = drawn(prompt_tokens), []
    for group in range(GROUPS):
        trunk = prompt + drawn(shared)
        mask = [False] * len(trunk) + [at // TURN % 2 == 0 for at in range(own)]
        rows += [Row(trunk + drawn(own), mask, group, member % 2, member % 2 - 0.5) for member in range(MEMBERS)]
    return rows


def save_random_model(preset: str, folder: Path, device: str) -> None:
    torch.manual_seed(0)
    with torch.device(device):
        config = Qwen3Config(**PRESETS[preset][-1], tie_word_embeddings=True)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The result line; the model is written into `folder`."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    save_random_model(asked.preset, folder, asked.device)
    rows = random_rows(asked.preset)
    sequences, masks = [row.token_ids for row in rows], [row.loss_mask for row in rows]
    single_process(asked.device)
    seconds: dict[str, list[float]] = {"tree": [], "plain": []}
    peaks: dict[str, list[float]] = {"tree": [], "plain": []}
    for repetition in range(asked.repetitions):
        for kind in seconds:
            told = update(LearnerConfig(str(folder), device=asked.device, prefix_tree=kind == "tree"), rows)
            gc.collect()  # the learner before would be counted with the next
            seconds[kind].append(told["seconds"])
            peaks[kind].append(told["peak_bytes"] / 2**30)
            say(f"{kind} {repetition + 1}/{asked.repetitions}: {told['seconds']:.3f} s")
    shape, needed, tokens = Shape.read(folder), work(sequences, masks, share=True), sum(map(len, sequences))
    tree_s, plain_s, rate = median(seconds["tree"]), median(seconds["plain"]), gemm_tflops("bfloat16", asked.device)
    on_gpu = asked.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "tokens": tokens,
        "unique_tokens": needed.tokens,
        "dedup_ratio": round(tokens / needed.tokens, 3),
        "flop_ratio": round(flop_ratio(shape, sequences, masks), 3),
        "tree_s": round(tree_s, 3),
        "plain_s": round(plain_s, 3),
        "plain_tokens_per_s": round(tokens / plain_s, 1),
        "tree_tokens_per_s": round(tokens / tree_s, 1),
        "speedup_vs_plain": round(plain_s / tree_s, 3),
        "tree_peak_gib": round(max(peaks["tree"]), 2) if on_gpu else None,
        "plain_peak_gib": round(max(peaks["plain"]), 2) if on_gpu else None,
        "gemm_tflops_peak": round(rate, 3),
        "mfu_unique": round(needed.flops(shape) / (tree_s * rate * 1e12), 3),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse_arguments(arguments)

    def measured() -> dict[str, Any]:
        if asked.device == "cuda" and not torch.cuda.is_available():
            raise TaudojoError("--device cuda: torch finds no GPU; leave it out to measure the CPU")
        with tempfile.TemporaryDirectory() as folder:
            line = measure(asked, Path(folder))
        check_alone()
        return line

    return run_command(measured)


if __name__ == "__main__":
    sys.exit(main())
