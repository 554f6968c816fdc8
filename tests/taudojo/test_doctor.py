"""`taudojo doctor`: what it finds wrong, and what it advises."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from taudojo import doctor
from taudojo.cli import main

GIB = 1024**3


def test_memory_below_the_plan_fails_and_memory_in_use_warns():
    assert doctor.check_memory(total=8 * GIB, available=8 * GIB).status == "fail"
    assert doctor.check_memory(total=16 * GIB, available=4 * GIB).status == "warn"
    assert doctor.check_memory(total=16 * GIB, available=12 * GIB).status == "ok"
    assert doctor.check_memory(total=16 * GIB, available=int(11.7 * GIB)).status == "warn"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_folder_that_cannot_be_written_fails(tmp_path: Path):
    tmp_path.chmod(0o500)
    assert doctor.check_cache(tmp_path / "cache").status == "fail"


def test_a_cache_folder_that_is_a_file_fails_and_names_the_variable(tmp_path: Path):
    (tmp_path / "cache").touch()
    check = doctor.check_cache(tmp_path / "cache")
    assert check.status == "fail"
    assert "TAUDOJO_CACHE" in check.advice


def test_a_disk_without_room_for_a_run_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=GIB))
    assert doctor.check_disk(tmp_path, "disk", 2 * GIB, "models").status == "fail"


def test_a_missing_shared_memory_folder_warns(tmp_path: Path):
    assert doctor.check_shared_memory(tmp_path / "shm").status == "warn"


def test_a_ray_folder_too_long_for_sockets_fails(tmp_path: Path):
    assert doctor.check_ray_folder(tmp_path / ("x" * 60)).status == "fail"


def test_cuda_companions_of_cpu_torch_are_named_with_the_command_that_removes_them(monkeypatch: pytest.MonkeyPatch):
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    (check,) = doctor.check_cuda_only_packages()
    assert (check.name, check.status) == ("torchvision", "fail")
    assert "pip uninstall torchvision" in check.advice


def test_a_package_of_another_version_warns_and_a_missing_one_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        doctor.importlib.metadata, "requires", lambda name: ["ray==2.60.0; extra == 'train'", "gguf; extra == 'train'"]
    )
    monkeypatch.setattr(doctor, "_version", {"ray": "2.1.0"}.get)
    found = {check.name: check.status for check in doctor.check_packages(gpu=False)}
    assert found == {"ray": "warn", "gguf": "fail", "packages": "ok"}


@pytest.mark.skipif(not (doctor._version("torch") or "").endswith("+cpu"), reason="CPU torch is not installed")
def test_a_gpu_beside_cpu_torch_warns():
    check = doctor.check_torch(["NVIDIA H100"])
    assert check.status == "warn"
    assert "PLATFORM=gpu" in check.advice


def test_the_json_has_every_check_with_its_advice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    checks = [doctor.Check("memory", "fail", "1 GiB", "use a larger machine")]
    monkeypatch.setattr(doctor, "run_checks", lambda network: checks)
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"name": "memory", "status": "fail", "found": "1 GiB", "advice": "use a larger machine"}
    ]


def test_every_check_runs_on_this_machine_and_a_warning_is_no_failure(monkeypatch: pytest.MonkeyPatch):
    names = [check.name for check in doctor.run_checks()]
    assert {"python", "torch", "cores", "memory", "cache", "ports"} <= set(names)
    monkeypatch.setattr(doctor, "run_checks", lambda network: [doctor.Check("cores", "warn", "1", "more")])
    assert main(["doctor"]) == 0
