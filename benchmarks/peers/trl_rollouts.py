"""TRL's multi-turn rollout on our environment: the peer of `benchmarks.rollouts`, a process of its own.

The same player as in `benchmarks.peers.trl_grpo`, whose docstring says how TRL is set up; nothing is trained.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.peers.trl_grpo import MODE, Player, grpo_trainer, warm_up
from benchmarks.process import job_main, say
from benchmarks.workload import Workload
from envs.data import open_source
from rollouts.worker import build_world
from training.startup import world_config


def run(job: dict[str, Any]) -> Mapping[str, Any]:
    """Plays the episodes of `job["overrides"]` in one batch."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch
    from transformers import AutoModelForCausalLM, TrainerCallback

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    workload = Workload(job["model"], overrides=job["overrides"])
    source = open_source(workload.config.env.data.source, workload.config.env.data.path)
    player = Player(workload, build_world(world_config(workload.config, workload.model_path, source)))
    device = "cuda" if workload.config.cluster.device == "cuda" else "cpu"
    model = AutoModelForCausalLM.from_pretrained(workload.model_path, dtype=torch.bfloat16, attn_implementation="sdpa").to(device)
    model.generation_config.eos_token_id = player.world.chat.stop_token_ids
    (requests,) = player.steps
    with tempfile.TemporaryDirectory() as folder:
        trainer = grpo_trainer(
            workload.config,
            player.task_ids,
            player.play,
            player.score,
            folder=folder,
            model=model,
            tokenizer=player.world.chat.tokenizer,
            meter=TrainerCallback(),
        )
        warm_up(trainer)
        begin = time.perf_counter()
        player.play([request.task.id for request in requests], trainer)
        seconds = time.perf_counter() - begin
    tokens = sum(trajectory.sampled_tokens for trajectory in player.trajectories)
    say(f"TRL: {len(requests)} episodes, {tokens} tokens in {seconds:.1f} s")
    return {"mode": f"trl-{MODE}", "episodes": len(requests), "tokens": tokens, "seconds": seconds}


if __name__ == "__main__":
    job_main(run)
