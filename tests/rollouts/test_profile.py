"""Event lines: what an episode writes about its time, and what the summary and the trace make of them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rollouts import profile
from rollouts.engines.base import EngineConfig
from rollouts.engines.fake import FakeEngine
from rollouts.episode import play
from rollouts.events import LEVELS, OFF, EventLog, EventSettings, event_settings
from rollouts.gold import gold_trajectories
from rollouts.trajectory import EpisodeRequest

START = 1_795_000_000_000_000


def line(type: str, start_ms: float, ms: float, task: str = "a", kind: str = "k", process: int = 1, episode: int = 0) -> str:
    return json.dumps(
        {
            "type": type,
            "task": task,
            "model": "m",
            "kind": kind,
            "duration_ms": ms,
            "start_us": START + round(start_ms * 1000),
            "process": process,
            "episode": episode,
        }
    )


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """Two overlapping episodes in one process and one in another, 100 ms in all; a line that was cut off."""
    lines = [
        line("llm_call", 0, 20),
        line("tool_call", 20, 1, kind="get_order_details"),
        line("step_complete", 0, 21, kind="calls"),
        line("llm_call", 10, 40, task="b", episode=1),
        line("user_sim", 50, 10, task="b", episode=1),
        line("step_complete", 10, 50, task="b", kind="text", episode=1),
        line("evaluator", 21, 4),
        line("llm_call", 90, 10, task="c", process=2),
        line("llm_call", 70, 5, task="a", episode=2),
    ]
    path = tmp_path / "profile.jsonl"
    path.write_text("\n".join(lines) + '\n{"type": "llm_call", "ta')
    return path


def test_a_cut_line_is_left_out_and_counted(made_up: Path):
    events, damaged = profile.read_events(made_up)
    assert (len(events), damaged) == (9, 1)
    assert [e.start_us for e in events] == sorted(e.start_us for e in events)


@pytest.mark.parametrize("damage", ['"x"', "[]", '{"start_us": 1}', line("llm_call", 0, -1), line("llm_call", 0, float("nan"))])
def test_a_line_that_is_no_event_is_left_out(damage: str, tmp_path: Path):
    path = tmp_path / "profile.jsonl"
    path.write_text(damage + "\n" + line("llm_call", 0, 1) + "\n")
    events, damaged = profile.read_events(path)
    assert (len(events), damaged) == (1, 1)


def test_times_are_summed_by_type(made_up: Path):
    events, _ = profile.read_events(made_up)
    assert profile.wall_us(events) == 100_000
    summaries = {s.name: s for s in profile.by_type(events)}
    llm = summaries["llm_call"]
    assert (llm.count, llm.total, llm.mean) == (4, 75.0, 18.75)
    assert llm.p50 == 15.0  # of 5, 10, 20, 40
    assert llm.p95 == pytest.approx(37.0)
    assert llm.p99 == pytest.approx(39.4)
    assert llm.share == pytest.approx(0.65)  # 0 to 50, 70 to 75, 90 to 100
    assert llm.in_flight == pytest.approx(0.75)
    assert list(summaries)[-1] == "step_complete"
    assert next(iter(summaries)) == "llm_call"


def test_kinds_are_told_apart(made_up: Path):
    events, _ = profile.read_events(made_up)
    assert {s.name: s.count for s in profile.by_kind(events)}["tool_call get_order_details (m)"] == 1


def test_the_slowest_episode_stands_first(made_up: Path):
    events, _ = profile.read_events(made_up)
    episodes = profile.episodes_of(events)
    assert [(e.task, e.number, e.ms) for e in episodes] == [("b", 1, 50.0), ("a", 0, 25.0), ("c", 0, 10.0), ("a", 2, 5.0)]
    assert episodes[0].parts == {"llm_call": 40.0, "user_sim": 10.0}


def test_the_slowest_task_stands_first_by_the_mean_of_its_episodes(made_up: Path):
    events, _ = profile.read_events(made_up)
    tasks = profile.tasks_of(profile.episodes_of(events))
    assert [(t.task, t.episodes, t.mean, t.longest) for t in tasks] == [
        ("b", 1, 50.0, 50.0), ("a", 2, 15.0, 25.0), ("c", 1, 10.0, 10.0)
    ]  # fmt: skip


def test_rows_of_the_trace_hold_one_episode_at_a_time_and_nest(made_up: Path):
    events, _ = profile.read_events(made_up)
    trace = json.loads(json.dumps(profile.chrome_trace(events)))
    complete = [row for row in trace["traceEvents"] if row["ph"] == "X"]
    assert len(complete) == len(events)
    assert min(row["ts"] for row in complete) == 0
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in complete:
        rows.setdefault((row["pid"], row["tid"]), []).append(row)
    assert set(rows) == {(1, 1), (1, 2), (2, 1)}  # the third episode of process 1 reuses the first row
    for row in rows.values():
        open_until: list[int] = []
        for event in row:  # in the order of their beginnings, the enclosing one first
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            assert not open_until or event["ts"] + event["dur"] <= open_until[-1]
            open_until.append(event["ts"] + event["dur"])
    named = {row["name"] for row in trace["traceEvents"] if row["ph"] == "M"}
    assert named == {"process_name", "thread_name"}


def test_the_command_prints_the_tables_and_writes_the_trace(made_up: Path, capsys: pytest.CaptureFixture[str]):
    assert profile.main([str(made_up), "--slowest", "1"]) == 0
    out, err = capsys.readouterr()
    assert "9 events of 4 episodes in 0.10 s" in out
    assert out.count("task b  (") == 2  # the slowest task, and its slowest episode
    assert "task c" not in out
    assert "1 lines are no events" in err
    assert json.loads(made_up.with_suffix(".trace.json").read_text())["traceEvents"]


def test_a_name_that_a_model_made_up_stays_on_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "profile.jsonl"
    path.write_text(line("tool_call", 0, 1, kind="f\n\x1b[2J" + "x" * 500) + "\n")
    assert profile.main([str(path), "--trace", str(tmp_path / "t.json")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) < 200


def test_the_command_says_what_is_wrong_with_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert profile.main([str(tmp_path / "none.jsonl")]) == 2
    (tmp_path / "empty.jsonl").touch()
    assert profile.main([str(tmp_path / "empty.jsonl")]) == 2
    err = capsys.readouterr().err
    assert "No such file" in err
    assert "LOG_LEVEL=PROFILE" in err


@pytest.mark.parametrize(
    ("level", "types"),
    [
        ("PROFILE", set(LEVELS["PROFILE"])),
        ("profile", set(LEVELS["PROFILE"])),
        ("USER_JUDGE", {"user_sim", "evaluator"}),
        ("INFO, USER_JUDGE", {"user_sim", "evaluator"}),
        ("INFO", None),
        ("", None),
    ],
)
def test_the_level_says_what_is_written(level: str, types: set[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOG_LEVEL", level)
    settings = event_settings(tmp_path)
    assert (set(settings.types) if settings else None) == types
    assert list(tmp_path.iterdir()) == []


def test_two_logs_write_whole_lines_into_one_file(tmp_path: Path):
    settings = EventSettings(str(tmp_path / "new" / "profile.jsonl"), LEVELS["PROFILE"])
    logs = [EventLog(settings, "one"), EventLog(settings, "two", "customer")]
    for number in range(20):
        for log in logs:
            log.episode(str(number)).write("user_sim", "text", 0.0, by_user=True)
    for log in logs:
        log.close()
    events, damaged = profile.read_events(Path(settings.file))
    assert (len(events), damaged) == (40, 0)
    assert Counter(e.model for e in events) == {"": 20, "customer": 20}


def test_an_event_keeps_within_what_enclosed_it(tmp_path: Path):
    log = EventLog(EventSettings(str(tmp_path / "p.jsonl"), LEVELS["PROFILE"]), "m")
    for number in range(500):
        start = 1000 + number * 1.2345678e-4
        log.append("step_complete", "t", "m", "", number, start, start + 2.00000049e-3)
        log.append("llm_call", "t", "m", "", number, start + 4e-7, start + 2.00000049e-3)
    events, _ = profile.read_events(tmp_path / "p.jsonl")
    spans = {(e.episode, e.type): (e.start_us, e.end_us) for e in events}
    for number in range(500):
        outer, inner = spans[number, "step_complete"], spans[number, "llm_call"]
        assert outer[0] <= inner[0] <= inner[1] <= outer[1]


def test_off_writes_nothing():
    OFF.write("llm_call", "generate", 0.0)


def test_an_episode_writes_its_steps_and_what_they_were_made_of(world: Any, task_sets: Any, tmp_path: Path):
    log = EventLog(EventSettings(str(tmp_path / "profile.jsonl"), LEVELS["PROFILE"]), "policy", "scripted")
    profiled = replace(world, events=log)
    task = task_sets.heldout[0]
    (gold,) = gold_trajectories(profiled, [task])
    spoken = world.chat.tokenizer("Hello.", add_special_tokens=False).input_ids
    engine = FakeEngine(EngineConfig("fake:"), lambda prompt: spoken)
    played = asyncio.run(play(EpisodeRequest(task, seed=1, stage="test"), profiled, engine.generate))
    log.close()
    events, damaged = profile.read_events(tmp_path / "profile.jsonl")
    assert damaged == 0
    expert = Counter(e.type for e in events if e.episode == 0)
    policy = Counter(e.type for e in events if e.episode == 1)
    turns = sum(m.role == "assistant" for m in gold.transcript.messages) - 1  # the greeting was there before
    assert expert["expert_call"] == expert["step_complete"] == turns
    assert expert["tool_call"] == sum(bool(m.actions) for m in gold.transcript.messages)
    assert expert["llm_call"] == policy["expert_call"] == 0
    assert policy["llm_call"] == policy["step_complete"] == len(engine.requests)
    assert policy["user_sim"] == sum(m.role == "user" for m in played.transcript.messages)
    assert expert["evaluator"] == policy["evaluator"] == 1
    assert {e.model for e in events if e.type == "user_sim"} == {"scripted"}
    assert {e.task for e in events} == {task.id}
    names = {a.name for a in gold.transcript.calls}
    assert {name for e in events if e.type == "tool_call" for name in e.kind.split("+")} == names
