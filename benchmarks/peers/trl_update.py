"""One update of TRL's GRPOTrainer on episodes that were played before: a part of `benchmarks.learner`, a process of its own.

TRL is set up as in `benchmarks.peers.trl_grpo`; `rollout_func` hands it the given tokens, so that the step is its update alone:
padding, advantages, forward, backward, optimizer.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.batch import read_batch, whole_groups
from benchmarks.peers.trl_grpo import cut, grpo_trainer, warm_up
from benchmarks.process import job_main
from training.compose import load


def run(job: dict[str, Any]) -> Mapping[str, Any]:
    """`model`, `trajectories`, `max_tokens`; returns the seconds of the update and the tokens that went into it."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    groups = whole_groups(read_batch(Path(job["trajectories"]), job["max_tokens"]))
    rows = [row for group in groups for row in group]
    config = load(
        ["+experiment=grpo", f"grpo.tasks_per_step={len(groups)}", f"grpo.samples_per_task={len(groups[0])}", "tracking=none"]
    )

    def play(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        assert len(prompts) == len(rows), "TRL asks for other episodes than these"
        parts = [cut(row.token_ids, row.loss_mask) for row in rows]
        return {
            "prompt_ids": [prompt for prompt, _, _ in parts],
            "completion_ids": [completion for _, completion, _ in parts],
            "logprobs": None,
            "env_mask": [mask for _, _, mask in parts],
            "episode_reward": [row.reward for row in rows],
        }

    def score(prompts: Sequence[str], episode_reward: Sequence[float], **_: object) -> list[float]:
        return list(episode_reward)

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16, attn_implementation="sdpa")
    seconds: list[float] = []

    class Meter(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            seconds.append(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as folder:
        trainer = grpo_trainer(
            config,
            [f"group {number}" for number in range(len(groups))],
            play,
            score,
            folder=folder,
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(job["model"]),
            meter=Meter(),
        )
        trainer.remove_callback(PrinterCallback)
        warm_up(trainer)
        trainer.train()
    return {"seconds": seconds[0], "tokens": sum(len(row.token_ids) for row in rows)}


if __name__ == "__main__":
    job_main(run)
