"""The environment benchmark: its arithmetic, its result line, what it plays, and the Python that it makes for the peer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import envs, ours_envs
from benchmarks.envs import Comparison, run_side, table
from benchmarks.episodes import EpisodeFigures, EpisodeWorkload, PassTimes, median_figures
from benchmarks.ours_envs import ASK, Script, ScriptCustomer, first_write, opened, play
from benchmarks.peers import own_python
from benchmarks.peers.own_python import ensure_python
from envs.data import DataSource
from envs.domain import load_domain
from envs.errors import TaudojoError
from envs.types import Action, StopReason, Task

KEYS = ["episode_us", "reset_us", "tool_call_us", "reward_us", "bytes_per_env", "peer_episode_us", "speedup"]
OURS = EpisodeFigures(
    episodes=10, calls=40, passed=10, reset_us=20.0, replay_us=80.0, reward_us=100.0, first_pass_us=900.0, bytes_per_env=5000.4
)
PEER = EpisodeFigures(episodes=10, calls=40, passed=10, reset_us=1000.0, replay_us=2000.0, reward_us=1000.0)


@pytest.fixture
def work(packaged_data: DataSource) -> EpisodeWorkload:
    source = packaged_data
    return EpisodeWorkload("mock", str(source.root), source.source, source.version, passes=2, environments=20)


def dual_control_task(actions: list[tuple[str, str]]) -> Task:
    gold = [{"action_id": "", "name": name, "arguments": {}, "requestor": requestor} for requestor, name in actions]
    return Task("telecom", {"id": "1", "evaluation_criteria": {"actions": gold, "communicate_info": ["5", "6"]}})


def test_the_result_has_the_promised_keys_and_the_speedup_is_the_peers_time_over_ours():
    result = Comparison(OURS, PEER).to_json()
    assert list(result) == KEYS
    assert (result["episode_us"], result["tool_call_us"], result["bytes_per_env"]) == (200.0, 20.0, 5000)
    assert (result["peer_episode_us"], result["speedup"]) == (4000.0, 20.0)
    assert json.loads(json.dumps(result)) == result


def test_without_a_peer_its_figures_are_null_and_the_table_says_why():
    found = Comparison(OURS, None, "it has no such domain")
    assert (found.to_json()["peer_episode_us"], found.to_json()["speedup"]) == (None, None)
    shown = table({"mock": found, "retail": Comparison(OURS, PEER)}, "all")
    assert [cell for cell in shown.columns[1].cells][1] == "inspect-evals: it has no such domain"
    assert list(shown.columns[-1].cells) == ["", "", "20×", ""]


def test_tasks_without_calls_have_no_time_of_a_call():
    assert replace(OURS, calls=0).tool_call_us is None


def test_the_pass_and_the_round_of_median_length_are_reported_whole():
    passes = [PassTimes(1.0, 1.0, 1.0), PassTimes(3.0, 2.0, 1.0), PassTimes(9.0, 9.0, 9.0)]
    figures = EpisodeFigures.of(passes, episodes=1_000_000, calls=1, passed=1, first_pass=passes[2])
    assert (figures.reset_us, figures.replay_us, figures.reward_us, figures.first_pass_us) == (3.0, 2.0, 1.0, 27.0)
    assert median_figures([PEER, OURS, replace(PEER, reset_us=5000.0)]) == PEER


def test_figures_survive_their_file(tmp_path: Path):
    OURS.write(tmp_path / "figures.json")
    assert EpisodeFigures.read(tmp_path / "figures.json") == OURS


def test_both_sides_play_the_same_tasks(work: EpisodeWorkload, packaged_data: DataSource):
    tasks = load_domain("mock", packaged_data).tasks("base")
    assert [task["id"] for task in work.raw_tasks()] == [task.id for task in tasks]
    assert [task["id"] for task in replace(work, limit=2).raw_tasks()] == [task.id for task in tasks[:2]]


def test_a_script_asks_the_customer_for_their_share_of_the_calls():
    task = dual_control_task([("assistant", "a"), ("user", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")])
    script = Script.of(task)
    assert [turn.content or turn.actions[0].name for turn in script.turns] == ["a", ASK, "d", ASK, "5\n6"]
    assert [[action.name for action in group] for group in script.customer] == [["b", "c"], ["e"]]


def test_the_customer_of_a_script_acts_when_asked_and_hangs_up_at_the_farewell():
    script = Script.of(dual_control_task([("user", "b"), ("assistant", "a")]))
    customer = ScriptCustomer(script)
    customer.reset(script.task, None)
    assert customer.reply(ASK).actions == (Action("b", {}, "user"),)
    assert customer.reply("").actions == ()
    assert customer.reply(script.farewell).stop is StopReason.USER_STOP


@pytest.mark.parametrize("name", ["retail", "airline", "telecom"])
def test_reference_solutions_are_played_to_the_full_reward(name: str, packaged_data: DataSource):
    domain = load_domain(name, packaged_data)
    for task in domain.tasks("base")[:8]:
        times, passed = play(domain, Script.of(task))
        assert passed, task.id
        assert min(times.reset_s, times.replay_s, times.reward_s) > 0


def test_every_environment_that_fills_the_memory_has_written_once(packaged_data: DataSource):
    domain = load_domain("telecom", packaged_data)
    task = domain.tasks("base")[0]
    script = first_write(domain, task)
    assert script is not None
    assert len(script.turns) == 2
    env = opened(domain, script)
    env.step(script.turns[0])
    assert len(env.transcript.calls) == 1
    assert not env.toolkit.same_state(domain.new_toolkit(task))


def test_our_side_measures_every_figure(work: EpisodeWorkload):
    told: list[tuple[int, int]] = []
    figures = ours_envs.run(work, lambda *progress: told.append(progress))
    assert (figures.episodes, figures.calls) == (9, 7)
    assert figures.passed >= 8  # one mock task asks for what its reference solution leaves out
    assert min(figures.reset_us, figures.replay_us, figures.reward_us, figures.first_pass_us or 0) > 0
    assert figures.bytes_per_env is not None
    assert told == [(0, 18), (9, 18)]


def test_the_last_line_is_the_result_of_every_domain(capfd: pytest.CaptureFixture[str]):
    assert envs.main(["--domains", "mock", "--tasks", "2", "--rounds", "1"]) == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert list(result) == ["mock"]
    assert list(result["mock"]) == KEYS
    assert result["mock"]["peer_episode_us"] is None
    assert "inspect-evals: it has no mock domain" in " ".join(captured.err.split())
    assert "the first 2 base tasks" in captured.err


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--tasks", "-1"], ["--domains", "banking"]])
def test_wrong_arguments_are_refused(arguments: list[str]):
    with pytest.raises(SystemExit, match="2"):
        envs.parse_arguments(arguments)


def test_a_folder_that_is_no_data_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert envs.main(["--domains", "mock", "--data-dir", str(tmp_path / "nowhere")]) == 2
    captured = capfd.readouterr()
    assert "does not exist" in " ".join(captured.err.split())
    assert captured.out == ""


FAKE_SIDE = """
import sys, time
from benchmarks.episodes import EpisodeFigures, PassTimes, side_main
from envs.errors import TaudojoError

def run(work, tell):
    if work.domain == "unlucky":
        raise TaudojoError("The fake side has no luck.")
    time.sleep(60 * (work.domain == "slow"))
    print("not progress")
    tell(1, 2)
    return EpisodeFigures.of([PassTimes(1.0, 1.0, 1.0)], episodes=2, calls=1, passed=2)

side_main(run)
"""


@pytest.fixture
def fake_side(new_module: Callable[[str, str], str]) -> str:
    return new_module("fake_side", FAKE_SIDE)


def test_a_side_brings_its_figures_from_its_own_process(fake_side: str, work: EpisodeWorkload):
    told: list[tuple[int, int]] = []
    figures = run_side(Path(sys.executable), fake_side, work, lambda *progress: told.append(progress))
    assert figures.episode_us == 1.5e6
    assert told == [(1, 2)]


def test_a_side_that_fails_or_takes_too_long_is_an_error(fake_side: str, work: EpisodeWorkload):
    def run(domain: str, limit_s: float) -> None:
        run_side(Path(sys.executable), fake_side, replace(work, domain=domain), lambda *_: None, limit_s)

    with pytest.raises(TaudojoError, match=r"ended with status 2 on unlucky: The fake side has no luck\."):
        run("unlucky", 60)
    start = time.monotonic()
    with pytest.raises(TaudojoError, match="was not done with slow after 2 s"):
        run("slow", 2)
    assert time.monotonic() - start < 30


def test_a_peer_that_fails_leaves_our_figures(fake_side: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setattr(envs, "PEER", "no_such_side")
    monkeypatch.setattr(envs, "NO_PEER", {})
    monkeypatch.setattr(envs, "peer_python", lambda: Path(sys.executable))
    assert envs.main(["--domains", "mock", "--tasks", "1", "--rounds", "1"]) == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out.splitlines()[-1])["mock"]
    assert result["episode_us"] > 0
    assert result["speedup"] is None
    assert "no_such_side" in captured.err


class Commands:
    """Stands where commands are run; a made environment has a Python."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.run: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> SimpleNamespace:
        self.run.append(command)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
            (Path(command[-1]) / "bin" / "python").touch()
        failed = self.status and "pip" in command
        return SimpleNamespace(returncode=self.status if failed else 0, stderr="ERROR: no such package", stdout="")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setenv("TAUDOJO_CACHE", str(tmp_path))
    monkeypatch.setattr(own_python.subprocess, "run", commands)
    return commands


def test_a_peers_python_is_made_once_and_anew_for_other_requirements(commands: Commands):
    python = ensure_python("peer", ["a==1", "b==2"])
    assert commands.run[1] == [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "a==1", "b==2"]
    assert ensure_python("peer", ["a==1", "b==2"]) == python
    assert len(commands.run) == 2
    ensure_python("peer", ["a==2", "b==2"])
    assert len(commands.run) == 4


def test_a_peers_python_that_cannot_be_made_is_an_error_and_not_kept(commands: Commands):
    commands.status = 1
    with pytest.raises(TaudojoError, match="no such package"):
        ensure_python("peer", ["a==1"])
    commands.status = 0
    ensure_python("peer", ["a==1"])
    assert len(commands.run) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retail", "airline", "telecom"])
def test_the_peer_plays_the_same_tasks_and_finds_them_correct(name: str, work: EpisodeWorkload):
    figures = run_side(envs.peer_python(), envs.PEER, replace(work, domain=name, limit=3, passes=1), lambda *_: None)
    assert (figures.episodes, figures.passed) == (3, 3)
    assert min(figures.reset_us, figures.replay_us, figures.reward_us) > 0
