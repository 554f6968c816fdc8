"""Advantages of turns on numbers worked out by hand, and that every sampled turn is credited."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from envs.types import StopReason, Transcript
from rewards.breakdown import RewardBreakdown
from rewards.credit import turn_credit
from rewards.metrics import EpisodeMetrics
from rollouts.engines.base import Generation, SamplingParams
from rollouts.episode import play
from rollouts.gold import gold_trajectories
from rollouts.trajectory import EpisodeRequest, TokenSegment, Trajectory
from training.credit import token_advantages, turn_advantages
from training.loss import advantages


def test_a_turn_is_compared_with_the_same_turn_of_its_group():
    # to go: 1.0 0.5 0.5 | 0.2 −0.3 | 0.6;  means by turn: 0.6, 0.1, 0.5
    earned = [[0.5, 0.0, 0.5], [0.5, -0.3], [0.6]]
    values = turn_advantages(earned, [0, 0, 0], normalize_by_std=False)
    assert [pytest.approx(v) for v in values] == [[0.4, 0.4, 0.0], [-0.4, -0.4], [0.0]]
    sigma = math.sqrt(4 * 0.4**2 / 5)  # of six turns
    normalised = turn_advantages(earned, [0, 0, 0])
    assert [pytest.approx(v, abs=1e-5) for v in normalised] == [[0.4 / sigma, 0.4 / sigma, 0.0], [-0.4 / sigma] * 2, [0.0]]


def test_groups_are_compared_within_themselves():
    values = turn_advantages([[1.0], [5.0], [0.0], [7.0]], [3, 8, 3, 8], normalize_by_std=False)
    assert values == [[0.5], [-1.0], [-0.5], [1.0]]


@pytest.mark.parametrize("normalize", [True, False])
def test_with_one_turn_each_it_is_grpo(normalize: bool):
    rewards, groups = [1.0, 0.0, 0.5, 3.0, 1.0, 2.0, 2.0], [0, 0, 0, 1, 1, 1, 1]
    of_turns = turn_advantages([[r] for r in rewards], groups, normalize)
    assert [v[0] for v in of_turns] == pytest.approx(advantages(rewards, groups, "grpo", normalize), abs=1e-5)


def test_equal_turns_carry_no_signal():
    assert turn_advantages([[0.5, 0.5], [0.5, 0.5]], [0, 0]) == [[0.0, 0.0], [0.0, 0.0]]
    assert turn_advantages([[0.5, 0.25]], [0]) == [[0.0, 0.0]]


def test_an_advantage_stands_on_its_turn_s_tokens():
    segments = [
        TokenSegment([1, 2, 3, 4, 5, 6], [False, True, True, False, True, False], [0.0] * 6, [(1, 3, 0), (4, 5, 0)]),
        TokenSegment([1, 2], [False, True], [0.0] * 2, [(1, 2, 0)]),
    ]
    metrics = EpisodeMetrics("t", "lookup", 1, 1, 1.0, 1.0, 1.0, True, False, True, True, 1.0, 1.0, "user_stop")
    transcript = Transcript("t", "retail", (), StopReason.USER_STOP)
    played = Trajectory(transcript, "lookup", segments, RewardBreakdown(1.0), metrics, "grpo", 0, 0, 0)
    assert token_advantages(played, [0.5, -1.0, 2.0]) == [[0.0, 0.5, 0.5, 0.0, -1.0, 0.0], [0.0, 2.0]]
    with pytest.raises(ValueError, match="2 turns were credited and 3 were sampled"):
        token_advantages(played, [0.5, -1.0])


def test_a_turn_in_which_weights_were_swapped_is_one_turn():
    swapped = TokenSegment([1, 2, 3, 4, 5], [False, True, True, False, True], [0.0] * 5, [(1, 2, 6), (2, 3, 7), (4, 5, 7)])
    assert swapped.turns == [(1, 3), (4, 5)]
    metrics = EpisodeMetrics("t", "lookup", 1, 1, 1.0, 1.0, 1.0, True, False, True, True, 1.0, 1.0, "user_stop")
    transcript = Transcript("t", "retail", (), StopReason.USER_STOP)
    played = Trajectory(transcript, "lookup", [swapped], RewardBreakdown(1.0), metrics, "grpo", 0, 0, 0)
    assert played.tokens_by_version == {6: 1, 7: 2}
    assert token_advantages(played, [0.5, -1.0]) == [[0.0, 0.5, 0.5, 0.0, -1.0]]


def test_every_turn_of_a_real_episode_is_credited(world: Any, task_sets: Any, config: Any):
    """The expert's episodes, and those of a policy that writes calls, words and nonsense by chance."""
    rng = random.Random(0)
    turns = [
        "Could you tell me more?",
        '<tool_call>\n{"name": "list_all_product_types", "arguments": {}}\n</tool_call>',
        "<tool_call>{broken</tool_call>",
        "",
    ]

    async def chance(token_ids: Sequence[int], params: SamplingParams) -> Generation:
        ids = [*world.chat.tokenizer(rng.choice(turns), add_special_tokens=False).input_ids, world.chat.stop_token_ids[0]]
        return Generation(ids, [-1.0] * len(ids), "stop")

    tasks = task_sets.heldout[:6]
    requests = [EpisodeRequest(task, seed=0, stage="grpo") for task in tasks]
    episodes = gold_trajectories(world, tasks) + [asyncio.run(play(r, world, chance)) for r in requests]
    by_id = {t.id: t for t in tasks}
    of_turns = turn_credit(config.reward)
    for episode in episodes:
        request = EpisodeRequest(by_id[episode.transcript.task_id], seed=0, stage="grpo")
        earned = of_turns(request.task, episode.transcript, world.new_env(request), episode.reward.total)
        assert sum(earned) == pytest.approx(episode.reward.total)
        (row,) = token_advantages(episode, earned)
        assert [a != 0 for a in row] == [a != 0 and m for a, m in zip(row, episode.segments[0].loss_mask, strict=True)]
