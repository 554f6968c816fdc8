"""GRPO steps in TRL's GRPOTrainer, on our environment: one side of `benchmarks.grpo`, a process of its own.

`rollout_func` plays whole conversations (TRL's `environment_factory` would end one at the first turn without a call) with the
same coroutine as ours, `rollouts.episode.play`. All episodes that still run take their turn together: one
`GRPOTrainer._generate_single_turn`, TRL's own left-padded Hugging Face `generate`, the call that its tool loop makes. TRL's vLLM
mode does not start on CPU as shipped, so the mode is "hf".

What was chosen in TRL's favour:
- weights in bfloat16 (its default, float32, is several times slower on CPUs with bf16 units; ours keeps float32 masters);
- SDPA attention; no gradient checkpointing, which TRL has on by default; micro-batches of one row, the fastest here;
- one update per rollout (`num_iterations` 1, no reference model), so neither old nor reference log-probs are computed;
- no logging, no checkpoints; all cores; weights are shared between sampling and training, so `sync_s` is 0.
Tokens that the environment wrote are masked by `env_mask`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.process import say
from benchmarks.workload import Figures, StepFigures, Stopwatch, Workload, describe, side_main
from envs.data import open_source
from envs.env import Env
from envs.errors import TaudojoError
from envs.types import Task, Transcript
from rewards.breakdown import RewardBreakdown
from rollouts.engines.base import Generation, SamplingParams
from rollouts.episode import World, play
from rollouts.lockstep import LockStep
from rollouts.trajectory import EpisodeRequest, Trajectory
from rollouts.worker import build_world
from training.config import RunConfig
from training.startup import world_config

if TYPE_CHECKING:
    from trl import GRPOTrainer

MODE = "hf"

#: Rows of a forward and backward pass. One is the fastest on CPU (tokens/s at 640 tokens a row: 1 row 283, 2 rows 180). More
#: rows would save no padding either: TRL pads all episodes of a step to the longest one.
MICRO_BATCH = 1


class TurnEngine:
    """A GRPOTrainer as `LockStep` wants an engine: requests gather between `pause` and `resume` and run as one batch."""

    weight_version = 0

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer = trainer
        self._asked: list[tuple[list[int], SamplingParams, asyncio.Future[Generation]]] = []
        self._turns = 0

    def held(self) -> int:
        return len(self._asked)

    async def pause(self) -> None:
        self._asked = []

    async def generate(self, token_ids: Sequence[int], params: SamplingParams) -> Generation:
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        self._asked.append((list(token_ids), params, future))
        return await future

    async def resume(self) -> None:
        start = time.perf_counter()
        prompts = [ids for ids, _, _ in self._asked]
        sampled, _ = self._trainer._generate_single_turn(prompts, None, {}, self._trainer.num_generations)
        for ids, (_, params, future) in zip(sampled, self._asked, strict=True):
            ids = ids[: params.max_tokens]  # the batch stops at one limit for all rows
            finish = "stop" if ids[-1] in params.stop_token_ids else "length"
            future.set_result(Generation(ids, [0.0] * len(ids), finish))
        self._turns += 1
        say(f"TRL: turn {self._turns}, {len(prompts)} episodes, {time.perf_counter() - start:.1f} s")


class Player:
    """Plays and scores the episodes of a step: `play` is TRL's rollout_func, `score` its reward function."""

    def __init__(self, workload: Workload, world: World) -> None:
        if world.chat.splits:
            raise TaudojoError(
                "TRL trains on one sequence per episode, and this chat template cannot grow one; set model.chat.history=sampled."
            )
        self.world = replace(world, reward_fn=self._timed_reward)
        self.steps = workload.requests(world.domain)
        self.watch = Stopwatch()
        self.trajectories: list[Trajectory] = []
        self._reward_fn = world.reward_fn

    @property
    def task_ids(self) -> list[str]:
        """The prompts of TRL's dataset, one for each task, in the order of the steps."""
        return list(dict.fromkeys(request.task.id for requests in self.steps for request in requests))

    def play(self, task_ids: Sequence[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """`task_ids` has one entry per episode: TRL repeats a task as often as its group has samples."""
        requests = self.steps[trainer.state.global_step]
        assert [request.task.id for request in requests] == list(task_ids), "TRL asks for other tasks than this step's"
        start = time.perf_counter()
        self.trajectories = asyncio.run(self._play(requests, trainer))
        self.watch.seconds["rollout_s"] += time.perf_counter() - start - self.watch.seconds["reward_s"]
        rows = [_row(trajectory) for trajectory in self.trajectories]
        return {
            "prompt_ids": [prompt for prompt, _, _ in rows],
            "completion_ids": [completion for _, completion, _ in rows],
            "logprobs": None,
            "env_mask": [mask for _, _, mask in rows],
            "episode_reward": [trajectory.reward.total for trajectory in self.trajectories],
        }

    def score(self, prompts: Sequence[str], episode_reward: Sequence[float], **_: object) -> list[float]:
        """The rewards, which `play` has already computed."""
        return list(episode_reward)

    async def _play(self, requests: Sequence[EpisodeRequest], trainer: GRPOTrainer) -> list[Trajectory]:
        turns = LockStep(TurnEngine(trainer), len(requests))

        async def one(number: int, request: EpisodeRequest) -> Trajectory:
            try:
                return await play(request, self.world, partial(turns.generate, number))
            finally:
                turns.leave(number)

        return list(await asyncio.gather(*(one(number, request) for number, request in enumerate(requests))))

    def _timed_reward(self, task: Task, transcript: Transcript, env: Env) -> RewardBreakdown:
        with self.watch("reward_s"):
            return self._reward_fn(task, transcript, env)


def _row(trajectory: Trajectory) -> tuple[list[int], list[int], list[int]]:
    """Prompt, completion, and the completion's mask, 1 where the policy wrote."""
    (segment,) = trajectory.segments
    if not segment.sampled:
        task_id, length = trajectory.transcript.task_id, len(segment.token_ids)
        raise TaudojoError(f"The prompt of task {task_id} has {length} tokens; set a larger model.max_model_len.")
    return cut(segment.token_ids.tolist(), [bool(own) for own in segment.loss_mask])


def cut(token_ids: list[int], loss_mask: list[bool]) -> tuple[list[int], list[int], list[int]]:
    """Prompt, completion and its mask, cut at the first token that the policy wrote."""
    start = loss_mask.index(True)
    return token_ids[:start], token_ids[start:], [int(own) for own in loss_mask[start:]]


def run(workload: Workload) -> Figures:
    """Load, warm up, train `workload.steps` steps."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    start = time.perf_counter()
    import torch
    from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    source = open_source(workload.config.env.data.source, workload.config.env.data.path)
    player = Player(workload, build_world(world_config(workload.config, workload.model_path, source)))
    chat = player.world.chat
    model = AutoModelForCausalLM.from_pretrained(workload.model_path, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.generation_config.eos_token_id = chat.stop_token_ids

    steps: list[StepFigures] = []

    class Meter(TrainerCallback):
        """Cuts the run into steps: on_step_begin comes before TRL's rollout, on_step_end after the optimizer."""

        def on_step_begin(self, *_: object, **__: object) -> None:
            player.watch = Stopwatch()
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            steps.append(step_figures(player, time.perf_counter() - self.start))
            say(describe("TRL", player.trajectories, steps[-1]))

    with tempfile.TemporaryDirectory() as folder:
        trainer = grpo_trainer(
            workload.config,
            player.task_ids,
            player.play,
            player.score,
            folder=folder,
            model=model,
            tokenizer=player.world.chat.tokenizer,
            meter=Meter(),
        )
        trainer.remove_callback(PrinterCallback)
        warm_up(trainer)
        setup_s = time.perf_counter() - start
        say(f"TRL: ready in {setup_s:.0f} s")
        trainer.train()
    return Figures(MODE, setup_s, steps)


def step_figures(player: Player, step_s: float) -> StepFigures:
    """The figures of the step that has just ended; what is neither rollout nor reward is the update."""
    seconds = player.watch.seconds
    return StepFigures(
        step_s=step_s,
        tokens=sum(trajectory.tokens for trajectory in player.trajectories),
        sampled_tokens=sum(trajectory.sampled_tokens for trajectory in player.trajectories),
        episodes=len(player.trajectories),
        rollout_s=seconds["rollout_s"],
        reward_s=seconds["reward_s"],
        update_s=step_s - seconds["rollout_s"] - seconds["reward_s"],
        sync_s=0.0,
    )


def grpo_trainer(
    config: RunConfig, prompts: Sequence[str], play: Any, score: Any, *, model: Any, tokenizer: Any, meter: Any, folder: str
) -> GRPOTrainer:
    """TRL's trainer as the docstring above says, for steps of `tasks_per_step` × `samples_per_task` episodes."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    episodes = config.grpo.tasks_per_step * config.grpo.samples_per_task
    return GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        callbacks=[meter],
        reward_funcs=score,
        rollout_func=play,
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        args=GRPOConfig(
            output_dir=folder,
            max_steps=len(prompts) // config.grpo.tasks_per_step,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=episodes // MICRO_BATCH,
            num_generations=config.grpo.samples_per_task,
            max_completion_length=config.env.max_turn_tokens,  # of one turn: rollout_func decides how long an episode is
            shuffle_dataset=False,
            temperature=config.grpo.temperature,
            learning_rate=config.grpo.lr,
            max_grad_norm=config.learner.max_grad_norm,
            lr_scheduler_type="constant",
            bf16=True,
            use_cpu=model.device.type == "cpu",
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=config.seed,
        ),
    )


def warm_up(trainer: GRPOTrainer) -> None:
    """A few tokens, one forward and one backward pass, so that what is built on first use is not measured."""
    import torch

    model = trainer.model
    ids = torch.full((2, 64), 1, device=model.device)
    with torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.sum().backward()
    model.zero_grad()


if __name__ == "__main__":
    side_main(run)
