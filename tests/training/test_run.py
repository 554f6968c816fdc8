"""The run folder: what is on disk is whole at every moment, and a resumed run knows where it was."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from envs.errors import TaudojoError
from training.config import RunConfig, load
from training.run import RunFolder, RunState, StopSignal, write_atomically


class FakeLearner:
    """Saves one file, or fails half-way through it as a full disk does."""

    def __init__(self, disk_full: bool = False) -> None:
        self.disk_full = disk_full

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        (folder / "weights").write_text("half")
        if self.disk_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        (folder / "state.json").write_text(json.dumps(dict(state)))


@pytest.fixture(scope="module")
def base() -> RunConfig:
    return load(["+experiment=smoke"])


@pytest.fixture
def folder(base: RunConfig, tmp_path: Path) -> RunFolder:
    return RunFolder.create(base.model_copy(update={"output_dir": str(tmp_path / "outputs")}))


def checkpoints(folder: RunFolder) -> list[str]:
    return sorted(p.name for p in folder.path.iterdir() if "checkpoint" in p.name)


def test_state_and_configuration_survive_their_files(folder: RunFolder):
    folder.finish("eval/before")
    folder.state.step, folder.state.stage_seconds = 3, 1.5
    folder.state.blocks["before"] = {"test": {"n": 2, "ci95": {"reward": [0.0, 1.0]}, "write_db_match": None}}
    folder.count("sft", 120.0)
    folder.checkpoint("sft-00003", FakeLearner(), {"stage": "sft", "step": 3})  # type: ignore[arg-type]
    again, config = RunFolder.resume(folder.path)
    assert again.state == folder.state
    assert again.path == folder.path
    assert config.name == "smoke"


def test_a_finished_stage_starts_the_next_one_at_its_beginning(folder: RunFolder):
    folder.state.step, folder.state.stage_seconds = 7, 80.0
    folder.finish("sft")
    state = RunFolder.resume(folder.path)[0].state
    assert (state.done, state.step, state.stage_seconds) == (["sft"], 0, 0.0)


def test_resuming_a_folder_that_is_not_a_run_says_what_is_missing(tmp_path: Path, folder: RunFolder):
    with pytest.raises(TaudojoError, match=r"resume=.*/nothing: there is no config\.yaml; give the folder of a run"):
        RunFolder.resume(tmp_path / "nothing")
    (folder.path / "state.json").unlink()
    with pytest.raises(TaudojoError, match=r"there is no state\.json"):
        RunFolder.resume(folder.path)


def test_resuming_a_configuration_of_another_version_names_the_key(folder: RunFolder):
    with (folder.path / "config.yaml").open("a") as file:
        file.write("sead: 3\n")
    with pytest.raises(TaudojoError, match="no config key sead; did you mean seed"):
        RunFolder.resume(folder.path)


def test_runs_of_the_same_second_get_folders_of_their_own(base: RunConfig, tmp_path: Path):
    config = base.model_copy(update={"output_dir": str(tmp_path)})
    paths = {RunFolder.create(config).path for _ in range(4)}
    assert len(paths) == 4
    assert all(path.name.startswith("smoke-") for path in paths)


def test_a_run_folder_that_cannot_be_made_is_one_sentence(base: RunConfig, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TaudojoError, match=r"cannot write the run folder .*/file/smoke-.*: Not a directory; set output_dir"):
        RunFolder.create(base.model_copy(update={"output_dir": str(tmp_path / "file")}))


def test_a_checkpoint_replaces_the_one_before_it(folder: RunFolder):
    folder.checkpoint("grpo-00005", FakeLearner(), {"stage": "grpo", "step": 5})  # type: ignore[arg-type]
    newest = folder.checkpoint("grpo-00010", FakeLearner(), {"stage": "grpo", "step": 10})  # type: ignore[arg-type]
    assert checkpoints(folder) == ["checkpoint-grpo-00010"]
    assert RunFolder.resume(folder.path)[0].newest_checkpoint() == newest
    assert json.loads((newest / "state.json").read_text()) == {"stage": "grpo", "step": 10}


def test_a_checkpoint_of_the_same_name_is_written_anew(folder: RunFolder):
    folder.checkpoint("sft", FakeLearner(), {"step": 1})  # type: ignore[arg-type]
    newest = folder.checkpoint("sft", FakeLearner(), {"step": 2})  # type: ignore[arg-type]
    assert checkpoints(folder) == ["checkpoint-sft"]
    assert json.loads((newest / "state.json").read_text()) == {"step": 2}


def test_a_full_disk_leaves_the_old_checkpoint_and_no_half_one(folder: RunFolder):
    old = folder.checkpoint("grpo-00005", FakeLearner(), {"step": 5})  # type: ignore[arg-type]
    with pytest.raises(
        TaudojoError, match=r"checkpoint .* could not be written .*No space left.* make room and go on with resume="
    ):
        folder.checkpoint("grpo-00010", FakeLearner(disk_full=True), {"step": 10})  # type: ignore[arg-type]
    assert checkpoints(folder) == ["checkpoint-grpo-00005"]
    assert RunFolder.resume(folder.path)[0].newest_checkpoint() == old
    assert (old / "weights").exists()


def test_a_half_checkpoint_of_a_killed_run_is_in_nobodys_way(folder: RunFolder):
    partial = folder.path / ".checkpoint-sft.partial"
    partial.mkdir()
    (partial / "rest").write_text("of a run that was killed")
    newest = folder.checkpoint("sft", FakeLearner(), {"step": 1})  # type: ignore[arg-type]
    assert sorted(p.name for p in newest.iterdir()) == ["state.json", "weights"]
    assert not partial.exists()


def test_seconds_add_up_and_are_kept_when_a_stage_fails(folder: RunFolder):
    folder.state.seconds["sft"] = 100.0
    with pytest.raises(RuntimeError), folder.timed("sft"):
        raise RuntimeError
    assert 100.0 <= RunFolder.resume(folder.path)[0].state.seconds["sft"] < 101.0


def test_a_file_is_whole_or_as_it_was(tmp_path: Path):
    file = tmp_path / "state.json"
    write_atomically(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "new \ud800")
    assert file.read_text() == "old"
    write_atomically(file, "new")
    assert file.read_text() == "new"
    assert not (tmp_path / ".state.json.tmp").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_flag_and_the_second_ends_at_once(number: signal.Signals, capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.raised
        os.kill(os.getpid(), number)
        assert stop.raised
        assert "stopping after this step" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_new_run_has_done_nothing(folder: RunFolder):
    assert folder.state == RunState()
    assert folder.newest_checkpoint() is None
