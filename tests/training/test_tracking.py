"""What is shown of the episodes, how often, and that it is only ever text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.errors import TaudojoError
from envs.types import Action, Message, StopReason, Transcript
from rollouts.report import write_report
from rollouts.samples import MAX_TEXT_CHARS, plain, sample_row, spread
from rollouts.trajectory import Trajectory
from stage_fakes import trajectory
from training.compose import load
from training.config import TrackingSection
from training.tracking import Tracker, drop_rows_to_come

HOSTILE = "<script>alert(1)</script> [bold]not[/bold] \x1b[2J\x07 \ud800"


def episode(reward: float = 0.5, said: str = "Cancel it.") -> Trajectory:
    call = Action("cancel_order", {"order_id": "#W1", "reason": said})
    messages = (
        Message("assistant", "Hi!"),
        Message("user", said),
        Message("assistant", None, (call,)),
        Message("tool", "Error: no such order", action=call, error=True),
        Message("assistant", "<tool_call>{", parse_failure="it is not closed"),
    )
    return replace(trajectory(reward, 0), transcript=Transcript("task-7", "retail", messages, StopReason.USER_STOP))


def logged(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """The lines of six steps of eight episodes."""
    tracker = Tracker(folder, TrackingSection(mode="none", **settings), "test", {})
    for step in range(6):
        tracker.log("grpo", step, {"reward/mean": 0.5, "nothing": float("nan")}, [episode(n / 8) for n in range(8)])
    tracker.close()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tables_come_every_so_many_steps_and_conversations_every_so_many_episodes(tmp_path: Path):
    lines = logged(tmp_path, sample_steps=3, sample_rows=2, conversation_episodes=20)
    assert [line["step"] for line in lines if "samples" in line] == [0, 3]
    assert [len(line["samples"]) for line in lines if "samples" in line] == [2, 2]
    assert [line["step"] for line in lines if "conversations" in line] == [0, 2, 5]  # episodes 0, 20 and 40
    assert [line["metrics"] for line in lines] == [{"reward/mean": 0.5}] * 6


def row(stage: str, step: int, **metrics: float) -> str:
    return json.dumps({"stage": stage, "step": step, "metrics": metrics}) + "\n"


def test_rows_of_steps_to_come_are_dropped_and_half_a_line(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    drop_rows_to_come(file, ["sft"], 0)  # a new run has none
    known = [row("eval/before", 0), row("sft", 0), row("sft", 1)]
    file.write_text("".join([*known, row("sft", 2), row("eval/after_sft", 0), row("grpo", 0), '{"stage": "gr']))
    drop_rows_to_come(file, ["sft", "eval/after_sft", "grpo", "export"], 2)
    assert file.read_text() == "".join(known)
    drop_rows_to_come(file, [], 0)
    assert file.read_text() == "".join(known)
    assert list(tmp_path.iterdir()) == [file]


def test_a_round_of_rft_keeps_its_row_and_its_steps_do_not(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(row("rft", 4, round=1.0) + row("rft", 4, loss=0.5))
    drop_rows_to_come(file, ["rft", "export"], 4)
    assert file.read_text() == row("rft", 4, round=1.0)


def test_both_can_be_switched_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = logged(tmp_path, sample_steps=0, conversation_episodes=0)
    assert all(line.keys() == {"time_s", "stage", "step", "metrics"} for line in lines)
    assert capsys.readouterr().out == ""


def test_the_settings_are_checked():
    assert load(["tracking=none", "tracking.sample_steps=0"]).tracking.sample_steps == 0
    with pytest.raises(TaudojoError, match=r"tracking\.conversation_episodes"):
        load(["tracking.conversation_episodes=-1"])


def test_rows_go_from_the_worst_reward_to_the_best():
    played = [episode(reward) for reward in (0.9, 0.1, 0.5, 0.3, 0.7)]
    assert [t.reward.total for t in spread(played, 3)] == [0.1, 0.5, 0.9]
    assert [t.reward.total for t in spread(played, 1)] == [0.5]
    assert [t.reward.total for t in spread(played[:2], 3)] == [0.1, 0.9]


def test_a_row_has_prompt_conversation_calls_and_reward():
    row = sample_row(episode(0.25))
    assert row["prompt"] == "Cancel it."
    assert row["tool_calls"] == "cancel_order(order_id='#W1', reason='Cancel it.')"
    assert row["reward"] == 0.25 and row["stop"] == "user_stop" and row["task"] == "task-7"
    assert "tool: Error: no such order" in str(row["conversation"])
    assert "[did not parse: it is not closed]" in str(row["conversation"])


def test_untrusted_text_is_shown_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tracker = Tracker(tmp_path, TrackingSection(mode="none"), "test", {})
    tracker.log("grpo", 0, {}, [episode(said=HOSTILE)])
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown and "\x07" not in shown and "\\x1b[2J" in shown
    assert "[bold]not[/bold]" in shown  # no markup of the console's
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "grpo, step 0: task task-7" in page
    assert "<script>" not in page and "&lt;script&gt;alert(1)" in page


def test_very_long_text_is_cut():
    assert plain("a" * MAX_TEXT_CHARS) == "a" * MAX_TEXT_CHARS
    assert plain("a" * (MAX_TEXT_CHARS + 1)).endswith("… (8,001 characters)")


def test_wandb_gets_numbers_and_tables_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Read back from what wandb wrote for a later `wandb sync`."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = Tracker(tmp_path, TrackingSection(mode="offline"), "test", {"seed": 1})
    tracker.log("grpo", 0, {"reward/mean": 0.5}, [episode(said=HOSTILE), episode()])
    tracker.close()
    tables = sorted((tmp_path / "wandb").glob("offline-run-*/files/media/table/grpo/*.table.json"))
    assert [path.name.split("_")[0] for path in tables] == ["conversations", "samples"]
    talk, samples = (json.loads(path.read_text()) for path in tables)
    assert samples["columns"] == [
        "step", "task", "kind", "reward", "official", "stop", "prompt", "conversation", "tool_calls"
    ]  # fmt: skip
    assert len(samples["data"]) == 2
    assert [row[-2] for row in talk["data"]] == ["assistant", "user", "assistant", "tool", "assistant"]
    assert all(isinstance(row[-1], str) for row in talk["data"])
