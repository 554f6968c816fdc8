"""`sbatch slurm/dgx_train.slurm`, on a real SLURM that runs on this machine for the length of these tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin"
MISSING = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not shutil.which(name, path=SEARCH)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"SLURM is not installed ({', '.join(MISSING)}); docs/slurm.md says how"),
]


@dataclass(frozen=True)
class Cluster:
    """A local SLURM; `sbatch` waits for the job and returns (exit status, the job's output)."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        # This very Python, and minutes after which SLURM ends the job; the test's own variables come on top.
        base = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "VENV": sys.prefix,
            "RAY_OBJECT_STORE_BYTES": str(1024**3),
            "SBATCH_TIMELIMIT": "15",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "RAY_"))}
        return kept | base

    def submit(self, *options: str, **variables: str) -> subprocess.Popen[str]:
        command = ["sbatch", "--wait", "--parsable", f"--output={self.folder}/job-%j.log", *options, "slurm/dgx_train.slurm"]
        return subprocess.Popen(command, cwd=ROOT, env=self.environment | variables, stdout=subprocess.PIPE, text=True)

    def finish(self, job: subprocess.Popen[str]) -> tuple[int, str]:
        number = job.communicate()[0].strip()
        return job.returncode, (self.folder / f"job-{number}.log").read_text()

    def sbatch(self, *options: str, **variables: str) -> tuple[int, str]:
        return self.finish(self.submit(*options, **variables))


@pytest.fixture(scope="module")
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Cluster]]:
    """One cluster at a time; asking for another number of nodes ends the one before."""
    running: dict[int, Cluster] = {}

    def stop() -> None:
        for cluster in running.values():
            subprocess.run(["slurm/local_cluster.sh", "stop", cluster.folder], cwd=ROOT, check=True)
        running.clear()

    def start(nodes: int) -> Cluster:
        if nodes not in running:
            stop()
            folder = tmp_path_factory.mktemp("slurm")
            done = subprocess.run(
                ["slurm/local_cluster.sh", "start", folder, str(nodes)], cwd=ROOT, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
            running[nodes] = Cluster(folder)
        return running[nodes]

    yield start
    stop()


def script(folder: Path, source: str) -> str:
    """A TRAIN_COMMAND that runs `source`."""
    file = folder / "train.py"
    file.write_text(textwrap.dedent(source))
    return f"{sys.executable} {file}"


def assert_nothing_is_left(output: str):
    job = output.split("taudojo: job ")[1].split()[0]
    assert list(Path("/tmp").glob(f"ray-{job}-*")) == []
    assert not (ROOT / "outputs" / f"slurm-{job}").exists()
    commands = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.parent.exists()]
    assert [command for command in commands if f"/ray-{job}-".encode() in command] == []


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two nodes need two cores")
def test_ray_spans_the_nodes_with_a_token_and_nothing_is_left_behind(start_cluster: Callable[[int], Cluster], tmp_path: Path):
    command = script(
        tmp_path,
        """
        import json, os, pathlib, ray, sys
        ray.init(logging_level="ERROR")

        @ray.remote
        def answer():
            return 42

        token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        facts = {
            "nodes": len(ray.nodes()), "answer": ray.get(answer.remote()), "arguments": sys.argv[1:],
            "auth": os.environ["RAY_AUTH_MODE"], "token_mode": oct(token.stat().st_mode & 0o777), "folder": os.getcwd(),
        }
        print("facts", json.dumps(facts))
        """,
    )
    status, output = start_cluster(2).sbatch("--nodes=2", TRAIN_COMMAND=command, OVERRIDES="seed=1 'name=two words'")
    assert status == 0, output
    facts = json.loads(output.split("facts ")[1].splitlines()[0])
    assert facts == {
        "nodes": 2,
        "answer": 42,
        "arguments": ["seed=1", "name=two words"],
        "auth": "token",
        "token_mode": "0o600",
        "folder": str(ROOT),
    }
    assert_nothing_is_left(output)


def test_a_container_runtime_wraps_ray_and_training_and_the_exit_status_is_the_trainings(
    start_cluster: Callable[[int], Cluster], tmp_path: Path
):
    fake = tmp_path / "bin" / "apptainer"  # notes that it was called, drops its own options, runs the command
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\nwhile [ "$1" != image.sif ]; do shift; done\nshift\nexec "$@"\n'
    )
    fake.chmod(0o755)
    status, output = start_cluster(1).sbatch(
        PATH=f"{fake.parent}:{os.environ['PATH']}",
        CONTAINER="image.sif",
        CONTAINER_PYTHON=sys.executable,
        TRAIN_COMMAND=script(tmp_path, "import ray, sys; ray.init(logging_level='ERROR'); sys.exit(3)"),
    )
    assert status == 3, output
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all(call.startswith("exec --nv --bind ") for call in calls)
    assert [next(name for name in ("ray_node.sh", "wait_for_ray.py", "train.py") if name in call) for call in calls] == [
        "ray_node.sh",
        "wait_for_ray.py",
        "train.py",
    ]
    assert_nothing_is_left(output)


def test_a_signal_before_the_end_lets_the_training_save(start_cluster: Callable[[int], Cluster], tmp_path: Path):
    command = script(
        tmp_path,
        f"""
        import pathlib, ray, sys, time
        ray.init(logging_level="ERROR")
        pathlib.Path("{tmp_path}/started").touch()
        try:
            time.sleep(300)
        except KeyboardInterrupt:
            time.sleep(2)
            print("saved", flush=True)
            sys.exit(130)
        """,
    )
    cluster = start_cluster(1)
    job = cluster.submit(TRAIN_COMMAND=command)
    deadline = time.monotonic() + 200
    while not (tmp_path / "started").exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    subprocess.run(["scancel", "--signal=TERM", "--batch", "--name=taudojo"], env=cluster.environment, check=True)
    status, output = cluster.finish(job)
    assert status == 130, output
    assert "saved" in output
    assert_nothing_is_left(output)


def test_a_missing_environment_is_one_sentence_and_status_2(start_cluster: Callable[[int], Cluster], tmp_path: Path):
    status, output = start_cluster(1).sbatch(VENV=str(tmp_path / "none"))
    assert status == 2
    assert output.splitlines() == [
        f"taudojo: {tmp_path}/none/bin/python is missing; "
        "run make setup on a file system that all nodes see, or set VENV or CONTAINER."
    ]


def test_ray_that_does_not_start_in_time_ends_the_job_with_a_sentence(start_cluster: Callable[[int], Cluster]):
    status, output = start_cluster(1).sbatch(RAY_START_TIMEOUT="0", TRAIN_COMMAND="true")
    assert status == 2, output
    assert "did not start within 0 s; raise RAY_START_TIMEOUT" in output
    assert_nothing_is_left(output)


def test_the_smoke_experiment_runs_under_slurm(start_cluster: Callable[[int], Cluster], tmp_path: Path):
    status, output = start_cluster(1).sbatch(EXPERIMENT="smoke", OVERRIDES=f"output_dir={tmp_path}")
    assert status == 0, output
    assert len(list(tmp_path.glob("smoke-*/summary.json"))) == 1
    assert_nothing_is_left(output)
