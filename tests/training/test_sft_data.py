"""Recorded episodes as SFT data: what was recorded is trained on, and what cannot be is named by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.errors import TaudojoError
from rollouts.gold import gold_trajectories
from rollouts.store import TrajectoryStore
from rollouts.trajectory import TokenSegment, Trajectory
from training.sft_data import read_recorded, shortest_of_each_kind, split_by_task, usable
from training.stages.sft import samples_of

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def episodes(world: Any, task_sets: Any) -> list[Trajectory]:
    return gold_trajectories(world, task_sets.heldout[:4], stage="grpo")


@pytest.fixture
def recorded(tmp_path: Path, episodes: list[Trajectory]) -> Path:
    """A file of plain lines."""
    return write(tmp_path / "trajectories" / "grpo-0000.jsonl", episodes)


def write(file: Path, episodes: list[Trajectory]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(episode.to_json()) + "\n" for episode in episodes))
    return file


def test_recorded_tokens_are_trained_on_with_their_mask(world: Any, recorded: Path, episodes: list[Trajectory]):
    samples = samples_of(read_recorded([recorded], world))
    assert samples == samples_of(episodes)
    assert any(any(s.loss_mask) and not all(s.loss_mask) for s in samples)


def test_what_a_run_stores_can_be_read(world: Any, tmp_path: Path, episodes: list[Trajectory]):
    folder = tmp_path / "trajectories"
    TrajectoryStore(folder).write("grpo", 0, episodes)
    assert samples_of(read_recorded([folder], world)) == samples_of(episodes)


def test_a_folder_stands_for_its_files(world: Any, recorded: Path, episodes: list[Trajectory]):
    write(recorded.with_name("grpo-0001.jsonl"), episodes[:1])
    ids = [t.transcript.task_id for t in read_recorded([recorded.parent], world)]
    assert ids == [t.transcript.task_id for t in [*episodes, episodes[0]]]


@pytest.mark.parametrize("missing", ["nothing.jsonl", "."])
def test_a_path_without_trajectories_is_an_error(world: Any, tmp_path: Path, missing: str):
    with pytest.raises(TaudojoError, match=r"sft\.trajectories: .* is no trajectory file, nor a folder with \*\.jsonl files"):
        read_recorded([tmp_path / missing], world)


def shorten(key: str) -> Change:
    return lambda line: line["segments"][0][key].pop()


def set_token(value: Any) -> Change:
    return lambda line: line["segments"][0]["token_ids"].__setitem__(7, value)


def another_tokenizer(line: dict[str, Any]) -> None:
    line["segments"][0]["token_ids"] = [1000 + i % 997 for i in line["segments"][0]["token_ids"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.pop("segments"), r"not a trajectory \('segments'\); mend or remove the line"),
        (lambda line: line.update(schema=99), "trajectory schema 99 is not 1"),
        (lambda line: line["segments"][0].update(token_ids=None), "not a trajectory"),
        (shorten("loss_mask"), r"a segment has (\d+) token_ids, (\d+) loss_mask, \1 logprobs"),
        (shorten("token_ids"), "a segment has"),
        (set_token(10**6), "token 1000000 is not one of this tokenizer's 49152; the episode was recorded with another model"),
        (set_token(-1), "token -1 is not"),
        (set_token("12"), "not a trajectory .*; mend or remove the line"),
        (set_token(10**12), "not a trajectory .*; mend or remove the line"),
        (another_tokenizer, "the tokens do not spell the customer's words; the episode was recorded with another tokenizer"),
    ],
)
def test_a_line_that_cannot_be_trained_on_is_named(world: Any, recorded: Path, change: Change, message: str):
    lines = recorded.read_text().splitlines()
    line = json.loads(lines[2])
    change(line)
    recorded.write_text("\n".join([*lines[:2], json.dumps(line), *lines[3:]]) + "\n")
    with pytest.raises(TaudojoError, match=rf"sft\.trajectories: .*grpo-0000\.jsonl:3: .*{message}"):
        read_recorded([recorded], world)


def test_a_line_that_was_cut_off_is_named(world: Any, recorded: Path):
    first, second, *rest = recorded.read_text().splitlines(keepends=True)
    recorded.write_text("".join([first, second[:-500] + "\n", *rest]))
    with pytest.raises(TaudojoError, match=r"grpo-0000\.jsonl:2: not a trajectory"):
        read_recorded([recorded], world)


def test_what_is_left_out_is_counted_by_its_reason(episodes: list[Trajectory]):
    first, second, third, fourth = episodes
    silent = replace(first, segments=[TokenSegment([1, 2], [False, False], [0.0, 0.0], [])])
    poor = replace(second, reward=replace(second.reward, total=0.1))
    longest = max(t.tokens for t in (second, third, fourth))
    kept, left_out = usable([silent, poor, third, fourth], max_tokens=longest, min_reward=0.5, unseen={fourth.transcript.task_id})
    assert kept == [third]
    assert left_out == {"empty": 1, "below min_reward": 1, "evaluated": 1}
    kept, left_out = usable(episodes, max_tokens=10, min_reward=None, unseen=())
    assert (kept, left_out) == ([], {"longer than the context": 4})


def test_the_shortest_of_each_kind_are_kept_in_their_order(episodes: list[Trajectory]):
    long, short = max(episodes, key=lambda t: t.tokens), min(episodes, key=lambda t: t.tokens)
    assert long.tokens > short.tokens
    mixed = [
        replace(long, kind="a"),
        replace(short, kind="b"),
        replace(short, kind="a"),
        replace(long, kind="b"),
        replace(long, kind="c"),
    ]
    assert shortest_of_each_kind(mixed, 1.0) == mixed
    assert shortest_of_each_kind(mixed, 0.5) == [mixed[1], mixed[2], mixed[4]]  # of one, one
    assert shortest_of_each_kind(mixed, 0.01) == [mixed[1], mixed[2], mixed[4]]


def test_no_task_is_trained_on_and_held_out(episodes: list[Trajectory]):
    twice = [*episodes, *episodes]
    train, heldout = split_by_task(twice, 0.25, seed=3)
    assert (len(train), len(heldout)) == (6, 2)
    assert {t.transcript.task_id for t in train}.isdisjoint(t.transcript.task_id for t in heldout)
    assert split_by_task(list(reversed(twice)), 0.25, seed=3)[1][0].transcript.task_id == heldout[0].transcript.task_id
    assert split_by_task(twice, 0.0, seed=3) == (twice, [])
    assert len(split_by_task(twice, 0.01, seed=3)[1]) == 2  # one task at least
    assert len(split_by_task(twice, 0.99, seed=3)[0]) == 2


def test_one_task_alone_cannot_be_split(episodes: list[Trajectory]):
    with pytest.raises(TaudojoError, match=r"sft\.heldout_fraction: the episodes are of one task"):
        split_by_task(episodes[:1] * 5, 0.5, seed=0)
