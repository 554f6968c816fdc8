"""The arithmetic of the GRPO benchmark, its result line, and what it says to wrong arguments."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import grpo
from benchmarks.grpo import busy_warning, compare, ensure_checkpoint, parse_arguments, run_side
from benchmarks.workload import Figures, StepFigures, Stopwatch, Workload
from envs.data import open_source
from envs.domain import load_domain
from envs.errors import TaudojoError

STEP = StepFigures(
    step_s=100.0, tokens=24_000, sampled_tokens=6_000, episodes=24, rollout_s=60.0, reward_s=0.1, update_s=39.0, sync_s=0.9
)
WORK = Workload("some/folder", overrides=("grpo.samples_per_task=3", "reward=mixed"))


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def test_the_ratio_is_our_tokens_per_second_over_trls():
    trl = replace(STEP, step_s=400.0, tokens=20_000)
    assert compare(Figures("vllm", 10.0, [STEP]), Figures("hf", 5.0, [trl]))["ratio"] == 4.8  # 240 over 50


def test_the_result_line_has_the_promised_keys_and_the_seconds_of_each_phase():
    result = compare(Figures("vllm", 10.0, [STEP]), Figures("hf", 5.0, [replace(STEP, sync_s=None)]))
    assert list(result) == ["ours_s", "trl_s", "ours_tokens", "trl_tokens", "ratio", "trl_mode", "split"]
    assert result["trl_mode"] == "hf"
    assert result["split"]["ours"] == {"rollout_s": 60.0, "reward_s": 0.1, "update_s": 39.0, "sync_s": 0.9}
    assert result["split"]["trl"]["sync_s"] is None
    assert json.loads(json.dumps(result)) == result


def test_of_several_steps_the_one_of_median_speed_is_reported_whole():
    slow, fast = replace(STEP, step_s=300.0), replace(STEP, step_s=50.0)
    assert Figures("hf", 0.0, [fast, STEP, slow]).median_step == STEP
    assert Figures("hf", 0.0, [fast, slow]).median_step == slow


def test_a_side_without_steps_is_an_error():
    with pytest.raises(TaudojoError, match="finished no step"):
        _ = Figures("hf", 0.0).median_step


def test_workload_and_figures_survive_their_files(tmp_path: Path):
    figures = Figures("hf", 12.5, [STEP, replace(STEP, update_s=None)])
    figures.write(tmp_path / "figures.json")
    assert Figures.read(tmp_path / "figures.json") == figures
    assert Workload(**json.loads(json.dumps(asdict(WORK)))).config == WORK.config


def test_no_step_is_no_workload():
    with pytest.raises(TaudojoError, match="--steps is 0"):
        replace(WORK, steps=0)


def test_a_misspelt_override_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert grpo.main(["--model", str(model_folder(tmp_path / "m")), "grpo.samples_per_tusk=2"]) == 2
    assert "grpo.samples_per_tusk" in capsys.readouterr().err


def test_what_makes_the_sides_comparable_cannot_be_overridden():
    config = replace(WORK, overrides=("grpo.drop_flat_groups=true", "algorithm.kl_coef=0.1", "env.max_turn_tokens=32")).config
    assert (config.grpo.drop_flat_groups, config.algorithm.kl_coef, config.env.max_turn_tokens) == (False, 0.0, 32)


def test_every_step_has_new_tasks_and_every_process_gets_the_same():
    work = replace(WORK, steps=2)
    domain = load_domain("retail", open_source("packaged"))
    steps = work.requests(domain)
    assert steps == work.requests(domain)
    assert [len(requests) for requests in steps] == [12, 12]
    assert [request.group for request in steps[1]] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert len({request.task.id for requests in steps for request in requests}) == 8
    assert len({request.seed for requests in steps for request in requests}) == 24


def test_a_busy_machine_is_warned_about():
    assert busy_warning(0.4, cores=2) is None
    assert "load 4.9 on 2 cores" in (busy_warning(4.9, cores=2) or "")


def test_a_stopwatch_adds_up_its_phases():
    watch = Stopwatch()
    for _ in range(2):
        with watch("update_s"):
            time.sleep(0.01)
    assert watch.seconds["update_s"] >= 0.02
    assert watch.seconds["rollout_s"] == 0.0


def test_the_default_is_one_step_of_four_tasks_of_six_samples():
    arguments = parse_arguments([])
    config = Workload("m", arguments.steps, arguments.overrides).config
    assert (arguments.model, arguments.steps, config.grpo.tasks_per_step, config.grpo.samples_per_task) == (None, 1, 4, 6)


def test_the_newest_sft_model_is_taken(tmp_path: Path):
    old, new = model_folder(tmp_path / "a" / "sft_model"), model_folder(tmp_path / "b" / "sft_model")
    os.utime(old / "config.json", (1, 1))
    assert ensure_checkpoint(None, tmp_path) == new
    assert ensure_checkpoint(str(old), tmp_path) == old


@pytest.mark.parametrize(("model", "words"), [(None, "no run with an sft_model"), ("nowhere", "no such folder")])
def test_without_a_checkpoint_the_command_says_what_to_do(
    model: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert grpo.main(["--model", model] if model else []) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""


FAKE_SIDE = """
import sys, time
from benchmarks.workload import Figures, StepFigures, side_main
from envs.data import open_source
from envs.domain import load_domain
from envs.errors import TaudojoError

def run(workload):
    if workload.steps == 3:
        raise TaudojoError("The fake side has no luck.")
    time.sleep(60 * (workload.steps == 2))
    print("not the result")
    return Figures("fake", 0.0, [StepFigures(2.0, 24, 0, 24)])

side_main(run)
"""


@pytest.fixture
def fake_side(new_module: Callable[[str, str], str]) -> str:
    return new_module("fake_side", FAKE_SIDE)


def test_a_side_brings_its_figures_from_its_own_process(fake_side: str, capfd: pytest.CaptureFixture[str]):
    assert run_side(fake_side, WORK, limit_s=60).median_step.tokens == 24
    assert capfd.readouterr().out == ""


def test_a_side_that_fails_or_takes_too_long_is_an_error(fake_side: str):
    with pytest.raises(TaudojoError, match="ended with status 2"):
        run_side(fake_side, replace(WORK, steps=3), limit_s=60)
    start = time.monotonic()
    with pytest.raises(TaudojoError, match="was not done"):
        run_side(fake_side, replace(WORK, steps=2), limit_s=3)
    assert time.monotonic() - start < 30
