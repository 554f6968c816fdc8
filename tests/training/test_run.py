"""The run folder: what is on disk is whole at every moment, and a resumed run knows where it was."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from envs.errors import TaudojoError
from training.checkpoints import damage
from training.compose import load
from training.config import RunConfig
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
    for step in (1, 2):
        folder.state.step = step
        newest = folder.checkpoint("sft", FakeLearner(), {"step": step})  # type: ignore[arg-type]
    assert checkpoints(folder) == ["checkpoint-sft"]
    assert json.loads((newest / "state.json").read_text()) == {"step": 2}
    folder.checkpoint("sft", FakeLearner(disk_full=True), {"step": 2})  # type: ignore[arg-type]  # of the same place: it is there


def test_a_process_that_ends_while_checkpoints_change_places_costs_nothing(folder: RunFolder):
    final = folder.checkpoint("sft", FakeLearner(), {"step": 1})  # type: ignore[arg-type]
    final.replace(final.with_name(f".{final.name}.old"))
    again = RunFolder.resume(folder.path)[0]
    assert again.newest_checkpoint() == final
    assert damage(final) is None


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
    assert sorted(p.name for p in newest.iterdir()) == ["manifest.json", "state.json", "weights"]
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


# -- checkpoints that were damaged


def keeping(folder: RunFolder, keep: int) -> RunFolder:
    return RunFolder(folder.path, folder.state, keep)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "weights has 3 bytes, 4 were written": lambda c: truncate(c / "weights"),
    "weights is missing": lambda c: (c / "weights").unlink(),
    r"weights is not what was written \(sha256\)": lambda c: flip(c / "weights"),
    "manifest.json is missing": lambda c: (c / "manifest.json").unlink(),
    "manifest.json cannot be read": lambda c: truncate(c / "manifest.json"),
    "the folder is missing": shutil.rmtree,
}


def after_sft(folder: RunFolder, *steps: int) -> None:
    """SFT of 7 steps and its evaluation are done; GRPO saved at `steps`."""
    folder.finish("eval/before")
    folder.state.step, folder.state.stage_seconds = 7, 80.0
    folder.checkpoint("sft", FakeLearner(), {"stage": "sft", "step": 7})  # type: ignore[arg-type]
    folder.finish("sft")
    folder.finish("eval/after_sft")
    for step in steps:
        folder.state.step, folder.state.stage_seconds = step, 10.0 * step
        folder.checkpoint(f"grpo-{step:05d}", FakeLearner(), {"stage": "grpo", "step": step})  # type: ignore[arg-type]


def test_the_last_checkpoints_are_kept_and_the_one_where_sft_ended(folder: RunFolder):
    after_sft(keeping(folder, 2), 5, 10, 15)
    assert checkpoints(folder) == ["checkpoint-grpo-00010", "checkpoint-grpo-00015", "checkpoint-sft"]


def test_how_many_are_kept_is_configured(tmp_path: Path):
    config = load(["+experiment=smoke", "checkpoints.keep=3", f"output_dir={tmp_path}"])
    folder = RunFolder.create(config)
    assert folder.keep == RunFolder.resume(folder.path)[0].keep == 3


def test_a_whole_checkpoint_has_no_damage(folder: RunFolder):
    after_sft(folder, 5)
    assert damage(folder.path / "checkpoint-grpo-00005") is None
    again = RunFolder.resume(folder.path)[0]
    assert (again.state, again.state.step) == (folder.state, 5)


@pytest.mark.parametrize("wrong", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    wrong: str, folder: RunFolder, capsys: pytest.CaptureFixture[str]
):
    after_sft(keeping(folder, 2), 5, 10)
    DAMAGES[wrong](folder.path / "checkpoint-grpo-00010")
    resumed = RunFolder.resume(folder.path)[0]
    said = capsys.readouterr().out
    assert re.search(f"checkpoint-grpo-00010 is damaged: {wrong}", said)
    assert "going back to checkpoint-grpo-00005" in said
    state = resumed.state
    assert resumed.newest_checkpoint() == folder.path / "checkpoint-grpo-00005"
    assert (state.step, state.stage_seconds, state.done) == (5, 50.0, ["eval/before", "sft", "eval/after_sft"])
    assert RunFolder.resume(folder.path)[0].state == state
    assert capsys.readouterr().out == ""


def test_without_a_checkpoint_of_the_stage_the_run_goes_back_to_the_end_of_sft(folder: RunFolder):
    after_sft(folder, 5, 10)
    truncate(folder.path / "checkpoint-grpo-00010" / "weights")
    state = RunFolder.resume(folder.path)[0].state
    assert state.checkpoint == "checkpoint-sft"
    assert (state.step, state.stage_seconds, state.done) == (7, 80.0, ["eval/before"])  # SFT has nothing left to do


def test_without_any_whole_checkpoint_the_run_begins_again(folder: RunFolder, capsys: pytest.CaptureFixture[str]):
    after_sft(folder, 5)
    for name in checkpoints(folder):
        flip(folder.path / name / "state.json")
    state = RunFolder.resume(folder.path)[0].state
    assert (state.checkpoint, state.done, state.step, state.stage_seconds) == (None, [], 0, 0.0)
    assert "going back to the beginning of the run" in capsys.readouterr().out
    assert checkpoints(folder) == ["damaged-checkpoint-grpo-00005", "damaged-checkpoint-sft"]


def test_a_run_that_kept_no_places_is_resumed_as_it_is(folder: RunFolder):
    folder.checkpoint("grpo-00005", FakeLearner(), {})  # type: ignore[arg-type]
    raw = json.loads((folder.path / "state.json").read_text())
    del raw["kept"]
    (folder.path / "state.json").write_text(json.dumps(raw))
    (folder.path / "checkpoint-grpo-00005" / "manifest.json").unlink()
    resumed = RunFolder.resume(folder.path)[0]
    assert resumed.state.checkpoint == "checkpoint-grpo-00005"
    resumed.checkpoint("grpo-00010", FakeLearner(), {})  # type: ignore[arg-type]
    assert checkpoints(folder) == ["checkpoint-grpo-00010"]


def test_a_stage_s_slash_is_no_folder(folder: RunFolder):
    assert folder.checkpoint("arm/grpo-0-00002", FakeLearner(), {}).name == "checkpoint-arm-grpo-0-00002"  # type: ignore[arg-type]


# -- the best checkpoint


def measured(folder: RunFolder, step: int, reward: float | None, name: str | None = None) -> None:
    """GRPO came to a step, measured a mean reward there (or did not), and saved."""
    folder.state.step = step
    if reward is not None:
        folder.note("grpo", {"reward/mean": reward, "entropy": 1.0})
    folder.checkpoint(name or f"grpo-{step:05d}", FakeLearner(), {"stage": "grpo", "step": step})  # type: ignore[arg-type]


def test_the_best_checkpoint_stays_beside_the_last(folder: RunFolder):
    run = RunFolder(folder.path, folder.state, keep=1, best="grpo/reward/mean")
    for step, reward in ((5, 0.2), (10, 0.6), (15, 0.4), (20, 0.5)):
        measured(run, step, reward)
    assert checkpoints(run) == ["checkpoint-grpo-00010", "checkpoint-grpo-00020"]
    assert run.state.best == {"name": "checkpoint-grpo-00010", "metric": "grpo/reward/mean", "value": 0.6}
    measured(run, 25, 0.7)
    assert checkpoints(run) == ["checkpoint-grpo-00025"]
    assert RunFolder.resume(run.path)[0].best_checkpoint() == run.path / "checkpoint-grpo-00025"


def test_of_losses_the_least_is_best(folder: RunFolder):
    run = RunFolder(folder.path, folder.state, best="sft/heldout_loss")
    for step, loss in ((5, 0.9), (10, 0.3), (15, 0.4)):
        run.state.step = step
        run.note("sft", {"loss": 1.0, "heldout_loss": loss})
        run.checkpoint(f"sft-{step:05d}", FakeLearner(), {})  # type: ignore[arg-type]
    assert checkpoints(run) == ["checkpoint-sft-00010", "checkpoint-sft-00015"]


def test_only_a_checkpoint_where_the_metric_was_measured_can_be_best(folder: RunFolder):
    run = RunFolder(folder.path, folder.state, best="grpo/reward/mean")
    run.state.step = 4
    run.note("grpo", {"reward/mean": 9.0})  # measured one step earlier
    measured(run, 5, None)
    run.note("sft", {"reward/mean": 9.0})
    measured(run, 6, float("nan"))
    assert run.best_checkpoint() is None
    measured(run, 7, 0.1)
    assert run.best_checkpoint() == run.path / "checkpoint-grpo-00007"


def test_a_best_checkpoint_that_was_damaged_is_the_best_no_longer(folder: RunFolder):
    run = RunFolder(folder.path, folder.state, keep=2, best="grpo/reward/mean")
    measured(run, 5, 0.2)
    measured(run, 10, 0.6)
    flip(run.path / "checkpoint-grpo-00010" / "weights")
    assert RunFolder.resume(run.path)[0].state.best == {}


def test_where_rft_ended_is_kept_for_good(folder: RunFolder):
    folder.checkpoint("rft", FakeLearner(), {"step": 1})  # type: ignore[arg-type]
    measured(folder, 5, None)
    measured(folder, 10, None)
    assert checkpoints(folder) == ["checkpoint-grpo-00010", "checkpoint-rft"]
