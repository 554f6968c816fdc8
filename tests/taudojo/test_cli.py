"""The command `taudojo`: what it prints, and how it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from envs.errors import TaudojoError
from taudojo.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_command_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "usage: taudojo" in capsys.readouterr().err


def test_what_the_user_can_put_right_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]):
    assert main(["models", "get", "no-such-model"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("taudojo: no-such-model ")
    assert len(error.splitlines()) == 1


def test_train_hands_its_overrides_to_the_training_program(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    train = staticmethod(lambda overrides, began: seen.extend(overrides))
    monkeypatch.setitem(sys.modules, "training.main", type("Main", (), {"main": train}))
    assert main(["train", "+experiment=smoke", "seed=1", "~tracking"]) == 0
    assert seen == ["+experiment=smoke", "seed=1", "~tracking"]


def test_a_failure_of_training_becomes_the_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def fail(overrides: list[str], began: float) -> int:
        raise TaudojoError("the disk is full")

    monkeypatch.setitem(sys.modules, "training.main", type("Main", (), {"main": staticmethod(fail)}))
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "taudojo: the disk is full\n"


def test_models_lists_every_model_config(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    configs = sorted(file.stem for file in (ROOT / "configs/model").glob("*.yaml"))
    assert main(["models"]) == 0
    output = capsys.readouterr().out
    assert configs and [name for name in configs if name not in output] == []


@pytest.mark.parametrize(
    ("name", "asked"), [("qwen3_0_6b", "Qwen/Qwen3-0.6B"), ("smollm2_135m", "smollm2_135m"), ("org/name", "org/name")]
)
def test_a_model_is_fetched_by_its_name_or_its_hub_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, asked: str
):
    monkeypatch.setattr("training.models.ensure_model", lambda found: f"folder of {found}")
    assert main(["models", "get", name]) == 0
    assert capsys.readouterr().out == f"folder of {asked}\n"


def test_data_names_the_three_sources_and_the_cache(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAUDOJO_CACHE", "/some/cache")
    assert main(["data"]) == 0
    output = capsys.readouterr().out
    assert all(word in output for word in ("packaged", "path", "fetch", "/some/cache"))


def test_the_command_starts_without_the_training_stack():
    script = (
        "import sys, taudojo.cli; taudojo.cli.main(['data']); "
        "sys.exit(bool({'torch', 'ray', 'vllm', 'transformers', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
