"""TRL's side plays whole episodes: gold turns in place of samples, real tokenizer, environment and reward."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.peers.trl_grpo import Player, step_figures
from benchmarks.workload import Workload, describe
from envs.data import open_source
from envs.errors import TaudojoError
from envs.types import StopReason
from rollouts.episode import World
from rollouts.gold import gold_trajectories
from rollouts.trajectory import Trajectory
from rollouts.worker import build_world
from training.models import ensure_model
from training.startup import world_config


class GoldTrainer:
    """Stands where a GRPOTrainer stands; its samples are the expert's turns, found by the prompt they follow."""

    def __init__(self, gold: list[list[int]], masks: list[list[bool]]) -> None:
        self.num_generations = 2
        self.state = SimpleNamespace(global_step=0)
        self._next: dict[tuple[int, ...], list[int]] = {}
        self.batches: list[int] = []
        for ids, mask in zip(gold, masks, strict=True):
            for start in (i for i in range(1, len(ids)) if mask[i] and not mask[i - 1]):
                end = next((i for i in range(start, len(ids)) if not mask[i]), len(ids))
                self._next[tuple(ids[:start])] = list(ids[start:end])

    def _generate_single_turn(self, prompts: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        self.batches.append(len(prompts))
        return [self._next[tuple(prompt)] for prompt in prompts], None


@pytest.fixture(scope="module")
def work() -> Workload:
    return Workload(str(ensure_model("smollm2_135m")), overrides=["reward=official", "grpo.samples_per_task=2"])


@pytest.fixture(scope="module")
def world(work: Workload) -> World:
    return build_world(world_config(work.config, work.model_path, open_source("packaged")))


@pytest.fixture(scope="module")
def played(work: Workload, world: World) -> tuple[Player, dict[str, Any], GoldTrainer, list[Trajectory]]:
    player = Player(work, world)
    gold = gold_trajectories(world, [request.task for request in player.steps[0]])
    trainer = GoldTrainer([t.segments[0].token_ids for t in gold], [t.segments[0].loss_mask for t in gold])
    output = player.play([request.task.id for request in player.steps[0]], trainer)  # type: ignore[arg-type]
    return player, output, trainer, gold


def test_gold_turns_are_played_to_the_end_and_rewarded(played: Any):
    player, output, _, _ = played
    assert player.score(prompts=[], episode_reward=output["episode_reward"], completions=[]) == [1.0] * 8
    assert "user_stop 8" in describe("TRL", player.trajectories, step_figures(player, 2.0))


def test_all_running_episodes_take_their_turn_in_one_batch(played: Any):
    _, _, trainer, gold = played
    turns = [sum(m.role == "assistant" for m in t.transcript.messages) - 1 for t in gold]  # the greeting is no turn
    assert trainer.batches == [sum(n > turn for n in turns) for turn in range(max(turns))]


def test_trl_gets_the_trajectory_cut_at_the_first_sampled_token(played: Any):
    _, output, _, gold = played
    rows = zip(output["prompt_ids"], output["completion_ids"], output["env_mask"], gold, strict=True)
    for prompt, completion, mask, trajectory in rows:
        (segment,) = trajectory.segments
        assert prompt + completion == segment.token_ids.tolist()
        assert [False] * len(prompt) + [own == 1 for own in mask] == segment.loss_mask.tolist()
        assert mask[0] == 1


def test_the_phases_of_a_step_add_up(played: Any):
    player, output, _, _ = played
    step = step_figures(player, 1000.0)
    assert step.rollout_s + step.reward_s + step.update_s + step.sync_s == pytest.approx(1000.0)
    assert 0 < step.reward_s < step.rollout_s < step.update_s
    assert step.tokens == sum(len(p) + len(c) for p, c in zip(output["prompt_ids"], output["completion_ids"], strict=True))
    assert 0 < step.sampled_tokens < step.tokens
    assert step.episodes == 8


def test_a_turn_is_cut_where_the_context_ends(work: Workload, world: World, played: Any):
    _, _, trainer, _ = played
    player = Player(work, replace(world, limits=replace(world.limits, max_model_len=600)))
    output = player.play([request.task.id for request in player.steps[0]], trainer)
    assert {t.transcript.stop_reason for t in player.trajectories} == {StopReason.CONTEXT_FULL}
    assert all(len(mask) == len(ids) > 0 for mask, ids in zip(output["env_mask"], output["completion_ids"], strict=True))


def test_a_prompt_that_fills_the_context_is_an_error(work: Workload, world: World, played: Any):
    _, _, trainer, _ = played
    player = Player(work, replace(world, limits=replace(world.limits, max_model_len=100)))
    with pytest.raises(TaudojoError, match="set a larger"):
        player.play([request.task.id for request in player.steps[0]], trainer)
