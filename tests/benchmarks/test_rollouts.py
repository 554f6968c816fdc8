"""The rollout benchmark: cache use and result worked out by hand, the replay on a fake engine, the order of its parts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rollouts
from benchmarks.ours_rollouts import Turn, cache_use, replay_on
from envs.errors import TaudojoError

OURS = {"episodes": 128, "tokens": 40_000, "seconds": 100.0, "cached": 900, "cacheable": 1000, "reward": 0.5}
LIMIT = {"tokens": 40_000, "seconds": 95.0}
PEER = {"mode": "trl-hf", "episodes": 16, "tokens": 4000, "seconds": 160.0}


def test_the_result_line_has_what_was_promised():
    assert rollouts.result(OURS, LIMIT, PEER) == {
        "episodes_per_s": 1.28,
        "gen_tokens_per_s": 400.0,
        "engine_limit_tokens_per_s": 421.1,
        "efficiency": 0.95,
        "prefix_cache_hit_rate": 0.9,
        "peer": "trl-hf",
        "peer_episodes_per_s": 0.1,
        "speedup_vs_peer": 12.8,
    }
    assert rollouts.result(OURS, LIMIT, None)["speedup_vs_peer"] is None


def test_each_part_gets_the_same_tasks_and_the_peer_the_first_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    jobs: list[tuple[str, dict[str, Any]]] = []

    def run(module: str, job: dict[str, Any]) -> dict[str, Any]:
        jobs.append((module, job))
        return {"play": OURS, "replay": LIMIT}.get(job.get("kind"), PEER)

    asked = rollouts.parse_arguments(["--tasks", "4", "--samples", "2", "--peer-tasks", "1", "env.max_steps=9"])
    assert rollouts.measure(asked, tmp_path, run)["efficiency"] == 0.95
    assert [(module, job.get("kind")) for module, job in jobs] == [
        (rollouts.OURS, "play"),
        (rollouts.OURS, "replay"),
        (rollouts.PEER, None),
    ]
    assert jobs[0][1] | {"kind": ""} == jobs[1][1] | {"kind": ""}
    assert {"env.max_steps=9", "grpo.samples_per_task=2", "rollout.max_concurrent=64"} < set(jobs[2][1]["overrides"])
    assert "grpo.tasks_per_step=4" in jobs[0][1]["overrides"] and "grpo.tasks_per_step=1" in jobs[2][1]["overrides"]


@pytest.mark.parametrize(
    ("compiler", "asked", "expected"),
    [
        ("/usr/bin/g++", [], ["rollout.compile=true"]),
        (None, [], []),
        ("/usr/bin/g++", ["rollout.compile=false"], ["rollout.compile=false"]),
    ],
)
def test_the_engine_is_compiled_where_that_can_be_done(
    monkeypatch: pytest.MonkeyPatch, compiler: str | None, asked: list[str], expected: list[str]
):
    monkeypatch.setattr(rollouts, "cxx_compiler", lambda: compiler)
    assert rollouts.with_engine_defaults(asked) == expected


def test_more_peer_tasks_than_tasks_are_refused():
    with pytest.raises(SystemExit):
        rollouts.parse_arguments(["--tasks", "2", "--peer-tasks", "3"])


def test_only_whole_blocks_of_earlier_requests_can_be_cached():
    first = Turn(1.0, [1, 2, 3, 4, 5], [6, 7], cached=4)  # nothing was seen, so what it says it found does not count
    second = Turn(2.0, [1, 2, 3, 4, 5, 6, 7, 8], [9], cached=4)  # blocks 1-2, 3-4, 5-6; 7-8 ends with the last token
    other = Turn(3.0, [1, 2, 9, 9, 5, 6, 1], [9], cached=2)  # after another block, 5-6 is another
    assert cache_use([other, second, first], [], block_size=2) == (4 + 2, 6 + 2)


def test_what_was_played_before_counts_as_seen():
    turn = Turn(1.0, [1, 2, 3], [4], cached=2)
    assert cache_use([turn], [[turn]], block_size=2) == (2, 2)


class Engine:
    """Writes what it is told to, and remembers who asked and how many at once."""

    def __init__(self, wrong: bool = False) -> None:
        self.requests: list[list[int]] = []
        self.wrong = wrong
        self.writing = self.most = 0

    async def write(self, prompt: list[int], tokens: list[int]) -> list[int]:
        self.requests.append(prompt)
        self.writing += 1
        self.most = max(self.most, self.writing)
        await asyncio.sleep(0.01)
        self.writing -= 1
        return [*tokens[:-1], -1] if self.wrong else tokens


def test_a_replay_asks_for_the_same_prompts_and_tokens_turn_after_turn():
    engine = Engine()
    begins = [2.0, 0.0, 1.0, 3.0]
    turns = [[{"begin": begins[e] + turn, "prompt": [e, turn], "sampled": [0] * (e + 1)} for turn in range(3)] for e in range(4)]
    tokens = asyncio.run(replay_on(engine.write, turns, concurrent=2))
    assert tokens == 3 * (1 + 2 + 3 + 4)
    assert sorted(engine.requests) == sorted(t["prompt"] for e in turns for t in e)
    for episode in range(4):
        assert [p[1] for p in engine.requests if p[0] == episode] == [0, 1, 2]
    assert [p[0] for p in engine.requests if p[1] == 0] == [1, 2, 0, 3] and engine.most == 2  # as they began


def test_a_replay_with_other_tokens_is_no_limit():
    with pytest.raises(TaudojoError, match="wrote other tokens"):
        asyncio.run(replay_on(Engine(wrong=True).write, [[{"begin": 0.0, "prompt": [1], "sampled": [2, 3]}]], concurrent=1))


def test_a_replayed_request_writes_its_tokens_wherever_it_stands_in_the_batch():
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from benchmarks.forced import Forced

    forced, written = Forced(None, torch.device("cpu"), False), list[int]()
    told = SamplingParams(extra_args={"forced": [3, 1]})

    def sampled() -> list[int]:
        logits = torch.zeros(2, 5)
        logits[:, 4] = 50.0
        return torch.softmax(forced.apply(logits) / 2.0, -1).argmax(-1).tolist()

    forced.update_state(BatchUpdate(2, [], [(0, SamplingParams(), None, []), (1, told, None, written)], []))
    assert sampled() == [4, 3]
    written.append(3)
    forced.update_state(BatchUpdate(2, [], [], [(0, 1, MoveDirectionality.SWAP)]))
    assert sampled() == [1, 4]
    written.append(1)
    assert sampled() == [4, 4]  # all is written: the request only waits to be taken out
    forced.update_state(BatchUpdate(1, [0], [], []))
    assert not forced._rows


def test_the_command_without_a_checkpoint_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert rollouts.main(["--model", str(tmp_path / "none"), "--no-peer"], lambda *_: {}) == 2
    assert "give the sft_model folder of a run" in capsys.readouterr().err


def test_the_command_s_last_line_is_the_result(tmp_path: Path, smollm_path: Path, capsys: pytest.CaptureFixture[str]):
    status = rollouts.main(["--model", str(smollm_path), "--no-peer"], lambda _, job: OURS if job["kind"] == "play" else LIMIT)
    assert status == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["gen_tokens_per_s"] == 400.0
