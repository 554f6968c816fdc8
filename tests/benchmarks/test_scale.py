"""The scale benchmark: its ideal and its result worked out by hand, its slow customer, and the fake engine's cap."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks import scale
from benchmarks.ours_scale import Measured, Pace, groups, known_lengths
from benchmarks.paced import SlowUser
from benchmarks.process import ROOT
from envs.errors import TaudojoError
from envs.types import Message, StopReason, Task, Transcript
from envs.users.scripted import ScriptedUser
from rewards.breakdown import RewardBreakdown
from rollouts.engines.base import EngineConfig, SamplingParams
from rollouts.engines.fake import FakeEngine, FakeScript
from rollouts.trajectory import EpisodeRequest, TokenSegment, Trajectory

PACE = Pace(latency_s=0.5, token_s=0.1, slots=20, user_latency_s=2.0, user_jitter=0.0)


def measured(**changed: Any) -> Measured:
    values = {
        "workers": 2,
        "concurrent": 64,
        "episodes": 100,
        "tokens": 1000,
        "seconds": 10.0,
        "ideal_s": 9.0,
        "longest_s": 9.0,
        "scheduler_cpu_s": 0.05,
        "worker_cpu_s": 1.0,
        "bytes_per_episode": 1234.4,
    }
    return Measured(**{**values, **changed})


def test_the_result_line_has_what_was_promised():
    runs = [asdict(measured()), asdict(measured(workers=8, episodes=300, scheduler_cpu_s=0.35, seconds=9.0))]
    assert scale.result({"runs": runs}) == {
        "runs": [
            {"workers": 2, "concurrent": 64, "efficiency": 0.9, "bytes_per_episode": 1234},
            {"workers": 8, "concurrent": 64, "efficiency": 1.0, "bytes_per_episode": 1234},
        ],
        "overhead_ms_per_episode": 1.0,
    }


def test_the_command_s_last_line_is_the_result(capsys: pytest.CaptureFixture[str]):
    jobs: list[dict[str, Any]] = []

    def run(module: str, job: dict[str, Any]) -> dict[str, Any]:
        jobs.append(job)
        return {"runs": [asdict(measured())]}

    assert scale.main([], run) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"][0]["efficiency"] == 0.9
    (job,) = jobs
    assert {workers for workers, _, _ in job["runs"]} == {1, 2, 4, 8}
    assert {min(c for _, c, _ in job["runs"]), max(c for _, c, _ in job["runs"])} == {64, 4096}
    assert all(episodes >= concurrent for _, concurrent, episodes in job["runs"])


def test_what_a_user_can_mend_is_a_sentence(capsys: pytest.CaptureFixture[str]):
    def run(module: str, job: dict[str, Any]) -> dict[str, Any]:
        raise TaudojoError("use an idle machine")

    assert scale.main(["--quick"], run) == 2
    assert "use an idle machine" in capsys.readouterr().err


def test_an_episode_alone_takes_its_latencies_and_its_tokens():
    messages = [Message(role, "x") for role in ("assistant", "user", "assistant", "tool", "assistant", "user")]
    segment = TokenSegment([1] * 7, [True] * 7, [0.0] * 7, [])
    transcript = Transcript("1", "retail", tuple(messages), StopReason.USER_STOP)
    played: Any = Trajectory(transcript, "x", [segment], RewardBreakdown(1.0), None, "scale", 0, 0, seed=3)  # type: ignore[arg-type]
    assert PACE.alone_s(played) == pytest.approx(2 * 0.5 + 7 * 0.1 + 2 * 2.0)
    assert PACE.cap_tokens_per_s == 200.0


def test_groups_are_eight_episodes_of_a_task_with_seeds_of_their_own():
    tasks = [Task("retail", {"id": str(n)}) for n in range(2)]
    asked = groups([EpisodeRequest(task, 0, "scale") for task in tasks], 24)
    assert [r.task.id for r in asked] == ["0"] * 8 + ["1"] * 8 + ["0"] * 8
    assert [r.seed for r in asked] == list(range(24)) and [r.group for r in asked[::8]] == [0, 1, 2]


def test_the_expert_s_lengths_are_known(world: Any, task_sets: Any):
    requests = [EpisodeRequest(task, 0, "scale", policy="paced") for task in task_sets.grpo[:2]]
    known, cpu_s = known_lengths(world, requests)
    assert all(r.expected_tokens and r.expected_tokens > 20 for r in known) and cpu_s > 0


def test_a_slow_customer_says_the_same_after_a_while(task_sets: Any):
    task = task_sets.grpo[0]
    slow, quick = SlowUser(ScriptedUser(), 0.02, jitter=1.0), ScriptedUser()
    slow.reset(task, 5)
    quick.reset(task, 5)
    begin = time.monotonic()
    assert asyncio.run(slow.opening()) == quick.opening()
    assert time.monotonic() - begin >= slow.wait_s(5, 1) >= 0.02


def test_the_fake_engine_writes_no_faster_than_its_cap_and_serves_the_lowest_priority_first():
    engine = FakeEngine(EngineConfig("fake:"), script=FakeScript([[7] * 10], token_s=0.01, slots=2))
    ended: list[int] = []

    async def one(priority: int) -> None:
        await engine.generate([1], SamplingParams(max_tokens=10, priority=priority))
        ended.append(priority)

    async def all_of_them() -> float:
        begin = time.monotonic()
        await asyncio.gather(*(one(priority) for priority in (0, -1, -2, -5, -3, -4)))
        return time.monotonic() - begin

    assert asyncio.run(all_of_them()) >= 60 / 200 - 0.01
    assert ended == [0, -1, -5, -4, -3, -2]
    assert engine.written == 60


def test_a_waiting_request_that_is_cancelled_leaves_its_place_to_others():
    engine = FakeEngine(EngineConfig("fake:"), script=FakeScript([[7] * 10], token_s=0.005, slots=1))

    async def run() -> None:
        first, second, third = (asyncio.create_task(engine.generate([1], SamplingParams(max_tokens=10))) for _ in range(3))
        await asyncio.sleep(0.01)
        second.cancel()
        first.cancel()
        assert len((await third).token_ids) == 10

    asyncio.run(run())


def test_the_heap_grows_with_what_is_kept():
    program = (
        "from benchmarks.paced import heap_bytes; before = heap_bytes(); kept = [bytes(1000) * 1000 for _ in range(50)]; "
        "print(heap_bytes() - before)"
    )
    grown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"PYTHONMALLOC": "malloc"}, capture_output=True, check=True
    )
    assert int(grown.stdout) == pytest.approx(50e6, rel=0.02)
