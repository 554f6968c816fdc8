"""TRL's side plays whole episodes: gold turns in place of samples, real tokenizer, environment and reward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer

from benchmarks.peers.trl_grpo import Player, describe, step_figures
from benchmarks.workload import Workload
from envs.retail.expert import GoldAgent
from envs.types import StopReason
from rollouts.chat import ChatConfig, ChatFormat
from training.models import ensure_model

WORK = Workload(
    model_path="unused",
    chat={"format": "chatml", "tool_tags": False},
    tool_parser="hermes",
    reward={"official": {"weight": 1.0}},
    tasks=4,
    samples=2,
    max_new_tokens=256,
    max_model_len=4096,
)


class GoldTrainer:
    """Stands where a GRPOTrainer stands; its samples are the gold agent's turns, cut at `longest` tokens."""

    def __init__(self, longest: int = 10_000) -> None:
        self.num_generations = 2
        self.longest = longest
        self.player: Player

    def _generate_single_turn(self, prompts: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        running = [episode for episode in self.player.episodes if not episode.env.done]
        assert [episode.ids for episode in running] == prompts
        turns = [GoldAgent(e.env.domain, e.env.task).next_turn(e.env.transcript) for e in running]
        return [self.player.chat.assistant(turn)[: self.longest] for turn in turns], None


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(ensure_model("smollm2_135m")), ChatConfig.model_validate(WORK.chat))


def play(player: Player, trainer: GoldTrainer) -> dict[str, Any]:
    trainer.player = player
    return player.play([task_id for task_id in player.tasks for _ in range(2)], trainer)  # type: ignore[arg-type]


def test_gold_turns_are_played_to_the_end_and_rewarded(chat: ChatFormat):
    player = Player(WORK, chat)
    output = play(player, GoldTrainer())
    assert player.score(prompts=[], episode=output["episode"], completions=[]) == [1.0] * 8
    assert {episode.env.stop_reason for episode in player.episodes} == {StopReason.USER_STOP}
    assert "user_stop 8" in describe(player.episodes, step_figures(player, 2.0))


def test_only_what_the_policy_wrote_is_trained_on(chat: ChatFormat):
    player = Player(WORK, chat)
    output = play(player, GoldTrainer())
    for episode, ids, mask in zip(player.episodes, output["completion_ids"], output["env_mask"], strict=True):
        written = chat.decode([token for token, own in zip(ids, mask, strict=True) if own])
        said = [m for m in episode.env.transcript.messages[1:] if m.role == "assistant"]
        assert written.count("<|im_end|>") == len(said)
        assert [player.parser.parse(text).actions for text in written.split("<|im_end|>")[:-1]] == [m.actions for m in said]
        assert ids[-1] in chat.stop_token_ids  # nothing is appended after the last turn


def test_the_tokens_are_the_conversation_rendered_at_once(chat: ChatFormat):
    player = Player(WORK, chat)
    play(player, GoldTrainer())
    episode = player.episodes[0]
    *history, last = episode.env.transcript.messages[:-1]  # the customer's goodbye is seen by nobody
    before_last = chat.opening(player.system, player.tools, player._seen(history))
    assert episode.ids[: len(before_last)] == before_last
    assert last.role == "assistant"


def test_a_full_context_ends_the_episode_within_the_limit(chat: ChatFormat):
    player = Player(replace(WORK, max_model_len=700), chat)
    play(player, GoldTrainer())
    assert all(len(episode.ids) <= 700 for episode in player.episodes)
    assert StopReason.CONTEXT_FULL in {episode.env.stop_reason for episode in player.episodes}


def test_the_phases_of_a_step_add_up(chat: ChatFormat):
    player = Player(WORK, chat)
    output = play(player, GoldTrainer())
    player.score(prompts=[], episode=output["episode"])
    step = step_figures(player, 10.0)
    assert step.rollout_s + step.reward_s + step.update_s + step.sync_s == pytest.approx(10.0)
    assert step.tokens == sum(len(p) + len(c) for p, c in zip(output["prompt_ids"], output["completion_ids"], strict=True))
    assert 0 < step.sampled_tokens < step.tokens
    assert step.episodes == 8
