"""GRPO steps in TRL's GRPOTrainer, on our environment: one side of `benchmarks.grpo`, a process of its own.

`rollout_func` plays whole conversations (TRL's `environment_factory` would end one at the first turn without a call) with the
same Env, ChatFormat, parser and reward as ours. Each turn is one `GRPOTrainer._generate_single_turn` over the episodes that
still run: TRL's own Hugging Face `generate`, left-padded, the call that its tool loop makes. TRL's vLLM mode does not start on
CPU as shipped, so mode is "hf".

What was chosen in TRL's favour:
- weights in bfloat16 (its default, float32, is several times slower on CPUs with bf16 units; ours keeps float32 masters);
- SDPA attention; no gradient checkpointing, which TRL has on by default;
- one update per rollout (`num_iterations` 1, no reference model), so neither old nor reference log-probs are computed;
- no logging, no checkpoints; all cores; weights are shared between sampling and training, so `sync_s` is 0.
Tokens that the environment wrote are masked by `env_mask`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.workload import Figures, StepFigures, Stopwatch, Workload, say, side_main
from envs.env import Env
from envs.errors import TaudojoError
from envs.types import Message, StopReason
from envs.users.scripted import ScriptedUser
from rewards.compose import build_reward
from rollouts.chat import ChatConfig, ChatFormat
from rollouts.parsers import get_parser
from rollouts.prompts import render_observation, system_prompt

if TYPE_CHECKING:
    from trl import GRPOTrainer

MODE = "hf"

#: Rows of a forward and backward pass. TRL pads all episodes of a step to the longest one, so fewer rows would save no padding.
MICRO_BATCH = 4


@dataclass
class Episode:
    """A conversation and its tokens. `mask` is 1 where the policy wrote, one entry per id of `completion`."""

    env: Env
    prompt: list[int]
    completion: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.completion

    def append(self, ids: Sequence[int], sampled: bool) -> None:
        self.completion += ids
        self.mask += [int(sampled)] * len(ids)


class Player:
    """Plays the episodes of a step; `play` is TRL's rollout_func, `score` its reward function."""

    def __init__(self, workload: Workload, chat: ChatFormat) -> None:
        self.workload = workload
        self.chat = chat
        self.domain = workload.domain()
        self.tasks = {task.id: task for task in workload.task_list(self.domain)}
        self.parser = get_parser(workload.tool_parser, chat.tokenizer)
        self.system, self.tools = system_prompt(self.domain, "compact", self.parser)
        self.reward = build_reward(workload.reward)
        self.watch = Stopwatch()
        self.episodes: list[Episode] = []

    def play(self, task_ids: Sequence[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """One episode per entry; TRL repeats each task as often as its group has samples."""
        with self.watch("rollout_s"):
            self.episodes = [self._begin(task_id) for task_id in task_ids]
            running, turn = self.episodes, 0
            while running := [episode for episode in running if not episode.env.done]:
                start, turn = time.perf_counter(), turn + 1
                sampled, _ = trainer._generate_single_turn([e.ids for e in running], None, {}, trainer.num_generations)
                for episode, ids in zip(running, sampled, strict=True):
                    self._take_turn(episode, ids)
                say(f"TRL: turn {turn}, {len(running)} episodes, {time.perf_counter() - start:.1f} s")
        return {
            "prompt_ids": [episode.prompt for episode in self.episodes],
            "completion_ids": [episode.completion for episode in self.episodes],
            "logprobs": None,
            "env_mask": [episode.mask for episode in self.episodes],
            "episode": self.episodes,
        }

    def score(self, prompts: Sequence[str], episode: Sequence[Episode], **_: object) -> list[float]:
        with self.watch("reward_s"):
            return [self.reward(e.env.task, e.env.transcript, e.env).total for e in episode]

    def _begin(self, task_id: str) -> Episode:
        env = Env(self.domain, self.tasks[task_id], ScriptedUser(), max_steps=self.workload.max_turns)
        return Episode(env, self.chat.opening(self.system, self.tools, self._seen(env.reset())))

    def _take_turn(self, episode: Episode, sampled: Sequence[int]) -> None:
        """Append the turn and what answers it; an episode without room for another turn ends here."""
        sampled = sampled[: self.workload.max_model_len - len(episode.ids)]
        episode.append(sampled, sampled=True)
        answer = episode.env.step(self.parser.parse(self.chat.decode(sampled)))
        if episode.env.done:
            return
        glue = self.chat.close(sampled) + self.chat.extend(self._seen(answer))
        if len(episode.ids) + len(glue) >= self.workload.max_model_len:
            episode.env.interrupt(StopReason.CONTEXT_FULL)
        else:
            episode.append(glue, sampled=False)

    def _seen(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the policy reads them."""
        return [
            Message(m.role, render_observation(m, "compact", self.domain.name), m.actions, m.action, m.error) for m in messages
        ]


def run(workload: Workload) -> Figures:
    """Load, warm up, train `workload.steps` steps."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    start = time.perf_counter()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(workload.model_path, padding_side="left")
    parser = get_parser(workload.tool_parser, tokenizer)
    chat = ChatFormat(tokenizer, ChatConfig.model_validate(workload.chat), parser)
    if chat.splits:
        raise TaudojoError("TRL trains one sequence per episode, and this chat template cannot grow; set chat.history=sampled.")
    player = Player(workload, chat)
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
            say(describe(player.episodes, steps[-1]))

    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(workload, player, model, tokenizer, folder, Meter())
        _warm_up(trainer, player)
        setup_s = time.perf_counter() - start
        say(f"TRL: ready in {setup_s:.0f} s")
        trainer.train()
    return Figures(MODE, setup_s, steps)


def step_figures(player: Player, step_s: float) -> StepFigures:
    """The figures of the step that has just ended; what is neither rollout nor reward is the update."""
    seconds = player.watch.seconds
    return StepFigures(
        step_s=step_s,
        tokens=sum(len(episode.ids) for episode in player.episodes),
        sampled_tokens=sum(sum(episode.mask) for episode in player.episodes),
        episodes=len(player.episodes),
        rollout_s=seconds["rollout_s"],
        reward_s=seconds["reward_s"],
        update_s=step_s - seconds["rollout_s"] - seconds["reward_s"],
        sync_s=0.0,
    )


def describe(episodes: Sequence[Episode], step: StepFigures) -> str:
    """One line about a step."""
    ends = Counter(str(episode.env.stop_reason) for episode in episodes)
    return (
        f"TRL: step of {step.episodes} episodes, {step.tokens} tokens ({step.sampled_tokens} sampled) in {step.step_s:.1f} s "
        f"(rollout {step.rollout_s:.1f}, update {step.update_s:.1f}); ended by "
        + ", ".join(f"{reason} {n}" for reason, n in sorted(ends.items()))
    )


def micro_batch(episodes: int, most: int = MICRO_BATCH) -> int:
    """The largest number of rows up to `most` that divides the step's episodes, as TRL demands."""
    return max(rows for rows in range(1, most + 1) if episodes % rows == 0)


def _trainer(workload: Workload, player: Player, model: Any, tokenizer: Any, folder: str, meter: Any) -> GRPOTrainer:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = micro_batch(workload.episodes)
    return GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=player.score,
        rollout_func=player.play,
        train_dataset=Dataset.from_dict({"prompt": list(player.tasks)}),
        callbacks=[meter],
        args=GRPOConfig(
            output_dir=folder,
            max_steps=workload.steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=workload.episodes // rows,
            num_generations=workload.samples,
            max_completion_length=workload.max_new_tokens,  # of one turn: rollout_func decides how long an episode is
            shuffle_dataset=False,
            temperature=workload.temperature,
            learning_rate=workload.learning_rate,
            lr_scheduler_type="constant",
            bf16=True,
            use_cpu=model.device.type == "cpu",
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=workload.seed,
        ),
    )


def _warm_up(trainer: GRPOTrainer, player: Player) -> None:
    """A few tokens, so that what is built on first use is not measured."""
    import torch

    episode = player._begin(next(iter(player.tasks)))
    model = trainer.model
    ids = torch.tensor([episode.prompt], device=model.device)
    with torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)


if __name__ == "__main__":
    side_main(run)
