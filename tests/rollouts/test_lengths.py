"""Expected lengths: of the task where it was played, else of its kind, else unknown."""

from __future__ import annotations

from typing import Any

import pytest

from envs.types import StopReason, Task, Transcript
from rewards.breakdown import RewardBreakdown
from rollouts.lengths import Lengths
from rollouts.trajectory import EpisodeRequest, TokenSegment, Trajectory


def played(task_id: str, tokens: int, stop: StopReason = StopReason.USER_STOP, kind: str = "lookup") -> Trajectory:
    segment = TokenSegment([1] * tokens, [True] * tokens, [0.0] * tokens, [])
    metrics: Any = None
    return Trajectory(Transcript(task_id, "retail", (), stop), kind, [segment], RewardBreakdown(0.0), metrics, "t", 0, 0, 0)


def asked(task_id: str, kind: str = "lookup", expected: float | None = None) -> EpisodeRequest:
    return EpisodeRequest(Task("retail", {"id": task_id, "description": {"kind": kind}}), 0, "t", expected_tokens=expected)


def expected(lengths: Lengths, request: EpisodeRequest) -> float | None:
    return lengths.expect(request).expected_tokens


def test_a_task_is_expected_to_be_as_long_as_it_was():
    lengths = Lengths()
    lengths.learn(played("1", 100))
    lengths.learn(played("1", 200))
    assert expected(lengths, asked("1")) == pytest.approx(120)


def test_a_new_task_is_expected_to_be_as_long_as_its_kind():
    lengths = Lengths()
    lengths.learn(played("1", 100))
    assert expected(lengths, asked("2")) == pytest.approx(100)
    assert expected(lengths, asked("2", kind="cancel")) is None


def test_what_is_said_stays():
    lengths = Lengths()
    lengths.learn(played("1", 100))
    assert expected(lengths, asked("1", expected=7.0)) == 7.0


def test_an_episode_that_was_broken_off_says_nothing():
    lengths = Lengths()
    lengths.learn(played("1", 100, StopReason.TIMEOUT))
    assert expected(lengths, asked("1")) is None
