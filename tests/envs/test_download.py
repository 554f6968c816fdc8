"""Downloads over a bad line: what is resumed, what is tried again, and what is refused with a reason."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import envs.data
import envs.download
from envs.data import open_source
from envs.download import RemoteFile, download
from envs.errors import TaudojoError

UPSTREAM = Path(__file__).parents[3] / "shared" / "tau2"
CONTENT = bytes(range(256)) * 2000


@dataclass
class BadLine:
    """A web server with faults to choose. `ranges` are the Range headers that came, None for a request of the whole file."""

    files: dict[str, bytes] = field(default_factory=dict)
    drop_after: int | None = None  # close each connection after so many bytes of the body
    refuse: list[int] = field(default_factory=list)  # status codes to answer first
    knows_ranges: bool = True
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""

    def remote(self, name: str, content: bytes) -> RemoteFile:
        return RemoteFile(f"{self.url}/{name}", hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[BadLine]:
    bad = BadLine()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            bad.ranges.append(wanted)
            if bad.refuse:
                return self.send_error(bad.refuse.pop(0))
            content = bad.files.get(self.path.lstrip("/"))
            if content is None:
                return self.send_error(404)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and bad.knows_ranges else 0
            if start and start >= len(content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:] if bad.drop_after is None else content[start : start + bad.drop_after])
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    bad.url = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setattr(envs.download, "PAUSE_S", 0.0)
    yield bad
    http.shutdown()
    http.server_close()


def test_a_file_arrives_once_and_is_not_asked_for_again(line, tmp_path):
    line.files["a"] = CONTENT
    remote = line.remote("a", CONTENT)
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert line.ranges == [None]
    assert [file.name for file in tmp_path.iterdir()] == [remote.sha256]


def test_an_empty_file_is_a_file(line, tmp_path):
    line.files["empty"] = b""
    assert download(line.remote("empty", b""), tmp_path).read_bytes() == b""


def test_a_dropped_connection_is_resumed_where_it_broke(line, tmp_path):
    line.files["a"], line.drop_after = CONTENT, 200_000
    assert download(line.remote("a", CONTENT), tmp_path).read_bytes() == CONTENT
    assert line.ranges == [None, "bytes=200000-", "bytes=400000-"]


def test_what_one_run_got_the_next_run_does_not_ask_for_again(line, tmp_path, monkeypatch):
    line.files["a"], line.drop_after = CONTENT, 300_000
    remote = line.remote("a", CONTENT)
    monkeypatch.setattr(envs.download, "ATTEMPTS", 1)
    with pytest.raises(TaudojoError, match=r"300000 of 512000 bytes are kept: .* run again to go on"):
        download(remote, tmp_path)
    assert (tmp_path / f"{remote.sha256}.part").stat().st_size == 300_000
    assert download(remote, tmp_path).read_bytes() == CONTENT
    assert line.ranges == [None, "bytes=300000-"]


def test_a_server_that_cannot_resume_sends_everything_again(line, tmp_path, monkeypatch):
    line.files["a"], line.drop_after, line.knows_ranges = CONTENT, 300_000, False
    with pytest.raises(TaudojoError, match="the connection closed after 300000 of 512000 bytes"):
        download(line.remote("a", CONTENT), tmp_path)
    line.drop_after = None
    assert download(line.remote("a", CONTENT), tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(line, tmp_path):
    line.files["a"], line.refuse = CONTENT, [503, 429, 500]
    assert download(line.remote("a", CONTENT), tmp_path).read_bytes() == CONTENT


def test_a_server_that_stays_busy_is_named_with_its_answer(line, tmp_path):
    line.refuse = [503] * 10
    with pytest.raises(TaudojoError, match=r"could not be downloaded .*503"):
        download(line.remote("a", CONTENT), tmp_path)
    assert len(line.ranges) == envs.download.ATTEMPTS


def test_a_missing_file_is_not_asked_for_twice(line, tmp_path):
    with pytest.raises(TaudojoError, match=r"404 .*check the address"):
        download(line.remote("nowhere", CONTENT), tmp_path)
    assert line.ranges == [None]


def test_a_truncated_file_is_told_from_a_dropped_connection(line, tmp_path):
    line.files["a"] = CONTENT[:-1]
    with pytest.raises(TaudojoError, match=r"has 511999 bytes, the manifest says 512000; it is truncated"):
        download(line.remote("a", CONTENT), tmp_path)
    assert line.ranges == [None] and list(tmp_path.iterdir()) == []


def test_a_longer_file_is_refused(line, tmp_path):
    line.files["a"] = CONTENT + b"!"
    with pytest.raises(TaudojoError, match=r"has 512001 bytes, the manifest says 512000; it is another version"):
        download(line.remote("a", CONTENT), tmp_path)


def test_another_content_of_the_same_size_is_refused_and_forgotten(line, tmp_path):
    line.files["a"] = CONTENT[:-1] + b"!"
    with pytest.raises(TaudojoError, match=r"its sha256 is \w{12}…, expected \w{12}…"):
        download(line.remote("a", CONTENT), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_another_file_do_not_spoil_the_download(line, tmp_path):
    line.files["a"] = CONTENT
    remote = line.remote("a", CONTENT)
    for leftover in (b"?" * 1000, b"?" * len(CONTENT), b"?" * (len(CONTENT) + 1)):
        (tmp_path / f"{remote.sha256}.part").write_bytes(leftover)
        (tmp_path / remote.sha256).unlink(missing_ok=True)
        assert download(remote, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_servers_file_shows_the_truncation(line, tmp_path):
    line.files["a"] = CONTENT[:1000]
    remote = line.remote("a", CONTENT)
    (tmp_path / f"{remote.sha256}.part").write_bytes(CONTENT[:2000])
    with pytest.raises(TaudojoError, match="has at most 2000 bytes"):
        download(remote, tmp_path)


def test_a_server_that_is_not_there_is_named(line, tmp_path):
    with pytest.raises(TaudojoError, match=r"127\.0\.0\.1:9/a could not be downloaded .*check the network"):
        download(RemoteFile("http://127.0.0.1:9/a", "0" * 64, 5), tmp_path)


@pytest.mark.skipif(not UPSTREAM.is_dir(), reason="the official data is not in ../shared")
def test_the_whole_official_data_comes_over_a_line_that_drops(line, tmp_path, monkeypatch):
    """The shipped manifest, with its addresses turned to a server on loopback."""
    manifest = envs.data.MANIFEST.read_text()
    commit_url = manifest.split('"url": "')[1].split("domains/")[0]
    names = [file.relative_to(UPSTREAM).as_posix() for file in UPSTREAM.rglob("*") if file.is_file()]
    line.files = {name: (UPSTREAM / name).read_bytes() for name in names}
    line.drop_after = 3_000_000
    local = tmp_path / "manifest.json"
    local.write_text(manifest.replace(commit_url, f"{line.url}/"))
    source = open_source("fetch", local, cache=tmp_path / "cache")
    assert source.source == "fetch" and source.version == "tau2-bench v1.0.1"
    assert all(source.file(*name.split("/")).read_bytes() == line.files[name] for name in names if name != "LICENSE")
    assert sum(wanted is not None for wanted in line.ranges) == 6  # 14 MB in five pieces, 7 MB in three
    assert list((tmp_path / "cache" / "downloads").iterdir()) == []
