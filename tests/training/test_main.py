"""The command: what a user can put right is one sentence and exit status 2, whatever it was and wherever it is run from."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from safetensors import SafetensorError

from envs.errors import TaudojoError
from rollouts.gold import gold_trajectories
from rollouts.trajectory import EpisodeRequest
from training import main as command
from training.compose import load
from training.main import main
from training.run import RunFolder

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ["+experiment=smoke", "cluster=local"]
SUMMARY_KEYS = {"version", "data", "model", "user", "prompt", "seed", "before", "after_sft", "after_grpo", "seconds", "tokens"}
BLOCK_KEYS = {
    "n",
    "well_formed",
    "action_f1",
    "action_exact",
    "write_db_match",
    "noop_write_db_match",
    "official_reward",
    "reward",
    "ci95",
}
#: Names of numbers that a clock decides.
TIMES = re.compile(r"seconds|_s$|tokens_per_s|time_s|engine/(in_flight|utilisation)")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm_path: Path) -> Path:
    """A working folder that is not the project's. Nothing that a run starts or closes is started or closed for the session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(command.Session, "start", lambda self: pytest.fail("the engine was started"))
    # The session's own engine may be running beside these tests.
    monkeypatch.setattr("training.resources.memory", lambda: (64 * 2**30, 64 * 2**30))
    return tmp_path


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("taudojo: ")
    return lines[0]


def run_module(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training.main", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sft.batchsize=3"], r"no config key sft\.batchsize; did you mean sft\.batch_size\?"),
        (["+experiment=grop"], r"no such experiment; did you mean grpo\?"),
        (["model.path=/nope/x"], r"model\.path=/nope/x: no such folder"),
        (["env.data.source=path", "env.data.path=/nope/tau2"], r"/nope/tau2 does not exist"),
        (["env.data.source=path"], r"needs a folder"),
        (["rollout.kv_cache_gib=100000"], r"too little memory: the run needs about 1000\d\d\.\d GiB .*rollout\.kv_cache_gib"),
        (["sft.kinds=[cancle]"], r"sft\.kinds: there is no task kind cancle \(have: "),
        (["resume=outputs/nothing"], r"resume=outputs/nothing: there is no config\.yaml"),
        (["output_dir=file/outputs"], r"cannot write the run folder file/outputs/.*; set output_dir"),
        (["env.domain=retial"], r"retial"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_sentence_and_status_2(
    in_process: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
):
    (in_process / "file").write_text("not a folder")
    base = [] if any("experiment" in o or o.startswith("resume=") for o in overrides) else SMOKE
    assert main([*base, *overrides]) == 2
    assert re.search(message, sentence(capsys))


def test_too_little_disk_is_one_sentence(in_process: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3_000_000_000))
    assert main(SMOKE) == 2
    assert "checkpoints and models need about 6.3 GB, 3.0 GB are free in outputs; make room" in sentence(capsys)


@pytest.mark.parametrize("number", [28, 122])
def test_a_disk_that_fills_up_during_the_run_is_one_sentence(
    in_process: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
):
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number), "outputs/run/metrics.jsonl")

    monkeypatch.setattr(command.Session, "start", full)
    assert main(SMOKE) == 2
    assert "the disk is full (outputs/run/metrics.jsonl); make room, then resume the run" in sentence(capsys)


def test_an_error_of_ours_is_not_hidden(in_process: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(command.Session, "start", broken)
    with pytest.raises(KeyError):
        main(SMOKE)


def test_an_interrupted_run_says_how_to_go_on(
    in_process: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command.Session, "start", interrupt)
    assert main(SMOKE) == 130
    out = capsys.readouterr().out
    assert re.search(r"go on with: python -m training\.main resume=outputs/smoke-\d{8}-\d{6}\n", out)


def test_a_resumed_run_may_go_on_with_other_machines_and_nothing_else(
    in_process: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder = RunFolder.create(load([*SMOKE, "seed=7", "cluster.object_store_gib=2"])).path
    asked = ["+experiment=grpo", f"resume={folder}", "cluster.learner_world_size=2"]
    own = RunFolder.resume(folder)[1]
    config = command.resumed(own, load(asked), asked)
    assert (config.name, config.seed) == ("smoke", 7)
    assert (config.cluster.learner_world_size, config.cluster.object_store_gib) == (2, 2.0)
    asked = [f"resume={folder}", "cluster=gpu"]
    assert command.resumed(own, load(asked), asked).cluster == load(["cluster=gpu"]).cluster
    assert main([f"resume={folder}", "grpo.lr=1e-3", "seed=8"]) == 2
    assert "only cluster.* may change: leave out grpo.lr, seed, or begin a new run" in sentence(capsys)


class Learner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def load(self, checkpoint: Path) -> None:
        self.told.append(checkpoint.name)

    def keep_reference(self) -> None:
        self.told.append("keep")

    def export(self, folder: Path) -> None:
        folder.mkdir()
        raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("sft", "told"),
    [
        (True, ["checkpoint-grpo-00005", "checkpoint-sft", "keep", "checkpoint-grpo-00005"]),
        (False, ["keep", "checkpoint-grpo-00005"]),
    ],
)
def test_the_reference_of_a_resumed_run_is_what_grpo_started_from(
    in_process: Path, monkeypatch: pytest.MonkeyPatch, sft: bool, told: list[str]
):
    config = load([*SMOKE, "algorithm.kl_coef=0.1", f"sft.enabled={sft}"])
    session: Any = command.Session(config, RunFolder.create(config))
    session.learner, session.folder.state.step = Learner(), 5
    session.pool = session.sync = session.store = session.tracker = None
    session.tasks, session.begin = SimpleNamespace(grpo=[]), time.monotonic()
    newest = session.folder.path / "checkpoint-grpo-00005"
    monkeypatch.setattr(command, "ensure_whole", lambda checkpoint: None)
    monkeypatch.setattr("training.stages.grpo.run_grpo", lambda *_: 5)
    monkeypatch.setattr(RunFolder, "newest_checkpoint", lambda self: newest)
    monkeypatch.setattr(RunFolder, "checkpoint", lambda *_: None)
    session.take_up(newest)
    session.grpo("grpo", None)
    assert session.learner.told == told


def test_a_model_for_which_there_is_no_room_is_one_sentence(in_process: Path):
    config = load(SMOKE)
    session: Any = command.Session(config, RunFolder.create(config))
    session.learner, session.model_path = Learner(), ""
    with pytest.raises(
        TaudojoError, match=r"sft_model could not be written \(.*No space left.*make room and go on with resume=outputs"
    ):
        session.export_model("sft_model")
    assert not list(session.folder.path.glob(".*.partial"))


@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_is_used_where_there_is_one_and_nothing_was_chosen(monkeypatch: pytest.MonkeyPatch, gpu: bool):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert command.with_device_defaults(["seed=1"]) == (["seed=1", "cluster=gpu"] if gpu else ["seed=1"])
    assert command.with_device_defaults(["cluster=local"]) == ["cluster=local"]
    assert command.with_device_defaults(["resume=outputs/x"]) == ["resume=outputs/x"]


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        ([], ["eval/before", "sft", "eval/after_sft", "grpo", "eval/after_grpo", "export"]),
        (
            ["rft.enabled=true", "checkpoints.best=grpo/reward/mean"],
            ["eval/before", "sft", "eval/after_sft", "rft", "eval/after_rft", "grpo", "eval/after_grpo", "export", "export/best"],
        ),
        (["evaluate.enabled=false", "grpo.enabled=false"], ["sft", "export"]),
        (["sft.enabled=false"], ["eval/before", "grpo", "eval/after_grpo", "export"]),
    ],
)
def test_a_run_has_the_stages_that_are_enabled(tmp_path: Path, overrides: list[str], stages: list[str]):
    config = load([*SMOKE, f"output_dir={tmp_path}", *overrides])
    assert [stage for stage, _ in command.Session(config, RunFolder.create(config)).plan()] == stages


def test_credit_by_turn_is_what_the_turns_of_the_run_s_reward_earned(world: Any, task_sets: Any, tmp_path: Path):
    config = load([*SMOKE, f"output_dir={tmp_path}", "algorithm.credit=turn"])
    session = command.Session(config, RunFolder.create(config))
    session.world = world
    (episode,) = gold_trajectories(world, task_sets.heldout[:1])
    credit = session.credit()
    assert credit is not None
    earned = credit(EpisodeRequest(task_sets.heldout[0], seed=0, stage="grpo"), episode)
    assert len(earned) == len(episode.segments[0].versions)
    assert sum(earned) == pytest.approx(episode.reward.total) and sum(value > 0 for value in earned) > 0
    by_outcome = load([*SMOKE, f"output_dir={tmp_path}"])
    assert command.Session(by_outcome, RunFolder.create(by_outcome)).credit() is None


def test_grpo_leaves_the_run_time_for_its_last_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = load([*SMOKE, f"output_dir={tmp_path}", "seconds=900", "grpo.seconds=300"])
    session = command.Session(config, RunFolder.create(config))
    session.begin = 1000.0

    def seconds_at(now: float, evaluation: float, spent: float = 0.0) -> float | None:
        monkeypatch.setattr(command.time, "monotonic", lambda: now)
        session.folder.state.evaluation_seconds, session.folder.state.stage_seconds = evaluation, spent
        return session.within_the_run(config.grpo).seconds

    assert seconds_at(1500.0, 100.0) == 300.0  # as much as it may have
    assert seconds_at(1500.0, 250.0) == 150.0
    assert seconds_at(1560.0, 250.0, spent=60.0) == 150.0  # resumed after a minute of it
    assert seconds_at(1900.0, 250.0) == 1.0  # one step
    without_limit = load([*SMOKE, f"output_dir={tmp_path}"])
    assert command.Session(without_limit, RunFolder.create(without_limit)).within_the_run(without_limit.grpo).seconds is None


def test_the_total_is_all_but_the_model_s_making_and_a_resumed_run_adds_to_it(
    in_process: Path, smollm_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def make_the_model(_: object) -> Path:
        time.sleep(0.3)
        return smollm_path

    monkeypatch.setattr(command, "resolve_model", make_the_model)
    monkeypatch.setattr(command.Session, "start", lambda self: None)
    monkeypatch.setattr(command.Session, "plan", lambda self: [])
    monkeypatch.setattr("rollouts.report.write_report", lambda path: time.sleep(1.5))

    def run(*overrides: str) -> tuple[Path, float, float]:
        """Of a process that was started 100 seconds ago: the run's folder, the total, the seconds until the end."""
        began = time.monotonic() - 100.0
        folder = command.run(load(list(overrides)), began).path
        total = json.loads((folder / "summary.json").read_text())["seconds"]["total"]
        return folder, total, time.monotonic() - began

    folder, total, seconds = run(*SMOKE)
    assert 0.3 <= seconds - total < 1.3
    _, total_of_both, seconds_of_second = run(f"resume={folder}")
    assert 0.6 <= seconds + seconds_of_second - total_of_both < 2.1


def test_a_resumed_run_drops_the_numbers_of_steps_that_it_takes_again(in_process: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command.Session, "start", lambda self: None)
    monkeypatch.setattr("rollouts.report.write_report", lambda path: None)
    folder = RunFolder.create(load(SMOKE))
    folder.state.done, folder.state.step, folder._saved_place = ["eval/before"], 3, (3, 1.0)
    folder.save_state()
    rows = [("eval/before", 0), *(("sft", step) for step in range(6))]
    lines = [json.dumps({"stage": stage, "step": step, "metrics": {}}) + "\n" for stage, step in rows]
    (folder.path / "metrics.jsonl").write_text("".join(lines))
    monkeypatch.setattr(command.Session, "sft", lambda self, stage, stop: os.kill(os.getpid(), signal.SIGINT))
    assert main([f"resume={folder.path}"]) == 130
    assert [(row["stage"], row["step"]) for row in lines_of(folder.path)] == rows[:4]


def test_the_process_ends_with_status_2_and_without_a_traceback_from_any_folder(tmp_path: Path):
    for cwd in (ROOT, tmp_path):
        done = run_module("+experiment=smoke", "sft.batchsize=3", cwd=cwd)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr + done.stdout
        last = done.stderr.splitlines()[-1]
        assert last == "taudojo: there is no config key sft.batchsize; did you mean sft.batch_size?"


def test_a_hub_id_without_network_ends_with_status_2(tmp_path: Path):
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = run_module(*SMOKE, "model=qwen3_0_6b", cwd=tmp_path, **offline)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Qwen/Qwen3-0.6B is no folder here and the hub cannot be reached" in done.stderr.splitlines()[-1]


# -- the whole smoke run


def start_smoke(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    """In a process group of its own, so that a signal reaches what a terminal's Ctrl-C would."""
    return subprocess.Popen(
        [sys.executable, "-m", "training.main", *SMOKE, *overrides],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def only_run(cwd: Path) -> Path:
    (folder,) = (cwd / "outputs").iterdir()
    return folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[tuple[str, int, dict[str, float]]]:
    return [
        (line["stage"], line["step"], {name: value for name, value in line["metrics"].items() if not TIMES.search(name)})
        for line in lines_of(folder)
    ]


@pytest.mark.slow
def test_the_smoke_run_interrupted_and_resumed_has_the_numbers_of_an_unbroken_one(tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    process = start_smoke(whole)
    out, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, out
    folder = only_run(whole)

    out = interrupt(start_smoke(broken), broken, "eval/after_sft")
    other = only_run(broken)
    assert re.search(rf"go on with: python -m training\.main resume=outputs/{other.name}$", out, re.MULTILINE), out
    stopped = json.loads((other / "state.json").read_text())
    assert stopped["done"] == ["eval/before", "sft", "eval/after_sft"]
    assert stopped["step"] == 1
    assert (other / stopped["checkpoint"] / "learner").is_dir()
    done = run_module(f"resume=outputs/{other.name}", cwd=broken)
    assert done.returncode == 0, done.stderr

    first, second = timeless(folder), timeless(other)
    assert [line[:2] for line in first] == [line[:2] for line in second]
    assert {stage for stage, _, _ in first} == {"eval/before", "sft", "eval/after_sft", "grpo", "eval/after_grpo"}
    for one, again in zip(first, second, strict=True):
        assert one == again, one[:2]
    assert_it_leaves_what_it_promises(folder)


def assert_it_leaves_what_it_promises(folder: Path):
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "report.html", "curves.png", "final_model/model.safetensors"):
        assert (folder / name).is_file(), name
    assert (folder / "merged_model" / "tokenizer.json").is_file()
    assert list(folder.glob("checkpoint-*/learner"))
    assert not list(folder.glob(".*.partial"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() == SUMMARY_KEYS
    assert summary["data"].keys() == {"source", "version"}
    assert {"setup", "sft", "grpo", "eval", "total"} <= summary["seconds"].keys()
    for stage in ("before", "after_sft", "after_grpo"):
        assert summary[stage].keys() == {"test", "heldout"}
        for block in summary[stage].values():
            assert block.keys() == BLOCK_KEYS
            rates = [block[key] for key in BLOCK_KEYS - {"n", "ci95", "reward"}]
            assert all(rate is None or 0.0 <= rate <= 1.0 for rate in rates)
            assert all(low <= high for low, high in (pair for pair in block["ci95"].values() if pair and None not in pair))


@pytest.mark.slow
def test_deepspeed_trains_an_adapter_with_rft_and_every_option_of_grpo(tmp_path: Path):
    """Every sampled episode that τ² scores is kept, so that RFT has some after a few steps of SFT."""
    options = [
        "deterministic=false",  # as most runs are
        "learner=deepspeed",
        "learner.lora.rank=4",
        "evaluate.test=0",
        "sft.tasks=40",
        "sft.steps=4",
        "sft.heldout_steps=2",
        "sft.lr=2.0e-3",
        "sft.heldout_fraction=0.05",
        "rft.enabled=true",
        "rft.kinds=[lookup]",
        "rft.rounds=1",
        "rft.tasks_per_round=4",
        "rft.samples_per_task=2",
        "rft.threshold=0.0",
        "rft.batch_size=2",
        "grpo.drop_flat_groups=true",
        "grpo.refill=1",
        "grpo.steps=1",
        "algorithm.credit=turn",
        "algorithm.mask_below=0.5",
        "algorithm.mask_above=2.0",
        "algorithm.kl_coef=0.01",
        "checkpoints.best=rft/loss",
    ]
    process = start_smoke(tmp_path, *options)
    out, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, out
    folder = only_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() == SUMMARY_KEYS | {"after_rft"}
    assert summary["seconds"]["rft"] > 0
    lines = lines_of(folder)
    assert [line["step"] for line in lines if line["stage"] == "sft"] == list(range(4))
    held = [line["metrics"]["heldout_loss"] for line in lines if "heldout_loss" in line["metrics"]]
    assert len(held) == 2 and held[1] < held[0]
    (played,) = [line["metrics"] for line in lines if line["stage"] == "rft" and "kept" in line["metrics"]]
    assert played["episodes"] == 8.0 and played["kept"] > 0
    assert [line["metrics"]["loss"] for line in lines if line["stage"] == "rft" and "loss" in line["metrics"]]
    (step,) = [line["metrics"] for line in lines if line["stage"] == "grpo"]
    assert step["episodes"] in (2.0, 4.0)  # a flat group is played another for
    assert (folder / "checkpoint-rft" / "manifest.json").is_file()
    assert (folder / "best_model" / "model.safetensors").is_file()
    assert "after RFT" in (folder / "report.html").read_text()
    names = {path.name for path in (folder / "final_model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    assert (folder / "merged_model" / "model.safetensors").is_file()


def interrupt(process: subprocess.Popen[str], cwd: Path, after: str) -> str:
    """Ctrl-C in the first step of the stage after `after`. Returns what the command had printed."""
    deadline = time.monotonic() + 900
    while not any(after in json.loads(file.read_text())["done"] for file in cwd.glob("outputs/*/state.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.2)
    time.sleep(1.0)  # well in it
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 130, out
    return out
