"""Rollouts: how near to the engine's limit episodes are played, and how much faster than with TRL.

    python -m benchmarks.rollouts --model outputs/<run>/sft_model
    python -m benchmarks.rollouts --tasks 2 --samples 4 --no-peer        # a try

128 retail episodes (16 tasks × 8 samples), 64 in flight, as training plays them: one rollout worker, vLLM, both cores. Then their
requests alone on an engine of the same settings (`benchmarks.ours_rollouts`), which is the limit, and TRL's multi-turn rollout of
the first tasks. Each part runs alone, in a process of its own. The engine is compiled, as for long runs (`rollout.compile=true`),
where a C++ compiler is and the command does not say otherwise. Progress goes to stderr; the last line on stdout is JSON:

    episodes_per_s, gen_tokens_per_s   of ours, environment and rewards included
    engine_limit_tokens_per_s          of the replay
    efficiency                         gen_tokens_per_s over the limit
    prefix_cache_hit_rate              cached over cacheable prompt tokens: whole blocks that an earlier request had
    peer, peer_episodes_per_s          who it was, `trl-hf`, and how fast on its subset; null with --no-peer
    speedup_vs_peer                    episodes per second, ours over the peer's; stderr also tells tokens per second
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.grpo import busy_warning, ensure_checkpoint
from benchmarks.process import run_command, run_module, say
from envs.errors import TaudojoError
from rollouts.engines.vllm import cxx_compiler
from training.main import with_device_defaults

LIMIT_S = 30 * 60

OURS, PEER = "benchmarks.ours_rollouts", "benchmarks.peers.trl_rollouts"

Run = Callable[[str, dict[str, Any]], Mapping[str, Any]]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollouts", description="Rollouts against engine and TRL.")
    parser.add_argument("--model", help="SFT checkpoint, a Hugging Face folder (default: the newest outputs/*/sft_model)")
    parser.add_argument("--tasks", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--samples", type=int, default=8, help="episodes of each task (%(default)s)")
    parser.add_argument("--concurrent", type=int, default=64, help="episodes in flight (%(default)s)")
    parser.add_argument("--peer-tasks", type=int, default=2, help="TRL plays the first so many tasks (%(default)s)")
    parser.add_argument("--no-peer", action="store_true", help="leave TRL out")
    parser.add_argument("overrides", nargs="*", help="as for training.main, e.g. env.max_turn_tokens=64")
    asked = parser.parse_args(arguments)
    if not 1 <= asked.peer_tasks <= asked.tasks:
        parser.error(f"--peer-tasks is {asked.peer_tasks}; give it 1 to {asked.tasks}, the number of tasks")
    return asked


def with_engine_defaults(overrides: Sequence[str]) -> list[str]:
    """Adds `rollout.compile=true` where that can be done and nobody chose."""
    chosen = any(override.lstrip("+").startswith("rollout.compile=") for override in overrides)
    return [*overrides] if chosen or not cxx_compiler() else [*overrides, "rollout.compile=true"]


def result(ours: Mapping[str, Any], limit: Mapping[str, Any], peer: Mapping[str, Any] | None) -> dict[str, Any]:
    """The result line from what the parts brought."""
    rate, limit_rate = ours["tokens"] / ours["seconds"], limit["tokens"] / limit["seconds"]
    episodes_per_s = ours["episodes"] / ours["seconds"]
    peer_rate = peer["episodes"] / peer["seconds"] if peer else None
    return {
        "episodes_per_s": round(episodes_per_s, 3),
        "gen_tokens_per_s": round(rate, 1),
        "engine_limit_tokens_per_s": round(limit_rate, 1),
        "efficiency": round(rate / limit_rate, 3),
        "prefix_cache_hit_rate": round(ours["cached"] / ours["cacheable"], 3) if ours["cacheable"] else None,
        "peer": peer["mode"] if peer else None,
        "peer_episodes_per_s": round(peer_rate, 4) if peer_rate else None,
        "speedup_vs_peer": round(episodes_per_s / peer_rate, 2) if peer_rate else None,
    }


def measure(asked: argparse.Namespace, model: Path, run: Run) -> dict[str, Any]:
    """All parts, one after another."""
    overrides = [*with_engine_defaults(with_device_defaults(asked.overrides)), f"grpo.samples_per_task={asked.samples}"]
    overrides.append(f"rollout.max_concurrent={asked.concurrent}")
    with tempfile.TemporaryDirectory() as folder:
        job = {"model": str(model), "overrides": [*overrides, f"grpo.tasks_per_step={asked.tasks}"]}
        job["file"] = str(Path(folder, "requests.json"))
        ours = run(OURS, job | {"kind": "play"})
        say(f"ours: {ours['episodes']} episodes, {ours['tokens']} tokens in {ours['seconds']:.1f} s; reward {ours['reward']:.2f}")
        limit = run(OURS, job | {"kind": "replay"})
        say(f"the engine alone: {limit['tokens']} tokens in {limit['seconds']:.1f} s")
    peer = None
    if not asked.no_peer:
        peer = run(PEER, {"model": str(model), "overrides": [*overrides, f"grpo.tasks_per_step={asked.peer_tasks}"]})
        say(f"TRL: {peer['tokens'] / peer['seconds']:.1f} tokens/s, ours {ours['tokens'] / ours['seconds']:.1f}")
    return result(ours, limit, peer)


def main(arguments: Sequence[str] | None = None, run: Run | None = None) -> int:
    """The command; `run` is `run_module` unless a test gives another."""
    asked = parse_arguments(arguments)
    begin = time.monotonic()

    def limited(module: str, job: dict[str, Any]) -> Mapping[str, Any]:
        advice = "play fewer --tasks or --peer-tasks, or use a machine with nothing else to do."
        return run_module(module, job, LIMIT_S - (time.monotonic() - begin), advice)

    def measured() -> dict[str, Any]:
        if not asked.no_peer and find_spec("trl") is None:
            raise TaudojoError("TRL is not installed; install the extra `bench` (`make setup` does), or give --no-peer.")
        model = ensure_checkpoint(asked.model)
        if busy := busy_warning(os.getloadavg()[0], os.cpu_count() or 1):
            say(busy)
        return measure(asked, model, run or limited)

    return run_command(measured)


if __name__ == "__main__":
    sys.exit(main())
