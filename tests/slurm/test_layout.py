"""What slurm/dgx_train.slurm passes to the training, by the job's GPUs. `srun` and `scontrol` are fakes: no SLURM is needed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.compose import load

ROOT = Path(__file__).resolve().parents[2]
#: Ray's head says at once where it is, and stays until it is told to stop; everything else is done.
FAKE_SRUN = """#!/bin/bash
if [[ "$*" == *ray_node.sh\\ head* ]]; then
    echo 127.0.0.1:1 >"$TAUDOJO_RAY_STATE/address"
    exec sleep 60
fi
"""


def passed(folder: Path, nodes: int, gpus_per_node: int | None) -> list[str]:
    """The training's arguments after the experiment."""
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    names = " ".join(f"n{number}" for number in range(nodes))
    for name, source in {"srun": FAKE_SRUN, "scontrol": f"#!/bin/bash\nprintf '%s\\n' {names}\n"}.items():
        (folder / name).write_text(source)
        (folder / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "RAY_"))}
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "all", "SLURM_CPUS_ON_NODE": "1", "SLURM_SUBMIT_DIR": str(folder)}
    gpus = {} if gpus_per_node is None else {"SLURM_GPUS_ON_NODE": str(gpus_per_node)}
    done = subprocess.run(
        ["bash", "slurm/dgx_train.slurm"],
        cwd=folder,
        env=kept | job | gpus | {"PATH": f"{folder}:{os.environ['PATH']}", "VENV": sys.prefix, "OVERRIDES": "seed=1"},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background job
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("+experiment=grpo ")[1].splitlines()[0].split()


@pytest.mark.parametrize(
    ("nodes", "gpus_per_node", "workers", "world_size"), [(1, 2, 1, 1), (2, 1, 1, 1), (1, 3, 1, 1), (1, 4, 2, 2), (2, 2, 2, 2)]
)
def test_engines_and_learner_fit_the_gpus_of_the_job(
    tmp_path: Path, nodes: int, gpus_per_node: int, workers: int, world_size: int
):
    cluster = load(passed(tmp_path, nodes, gpus_per_node)).cluster
    assert (cluster.device, cluster.address) == ("cuda", "auto")
    assert (cluster.rollout_workers, cluster.learner_world_size) == (workers, world_size)
    assert cluster.gpus_per_rollout_worker == cluster.gpus_per_learner == 1.0


def test_one_gpu_is_shared_by_engine_and_learner(tmp_path: Path):
    cluster = load(passed(tmp_path, 1, 1)).cluster
    assert (cluster.device, cluster.address) == ("cuda", "auto")
    assert cluster.rollout_workers * cluster.gpus_per_rollout_worker + cluster.learner_world_size * cluster.gpus_per_learner == 1


def test_nodes_without_gpus_train_on_their_cores_and_overrides_come_last(tmp_path: Path):
    assert passed(tmp_path, 2, None) == ["cluster.address=auto", "seed=1"]
