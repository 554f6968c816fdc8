"""Download a file whose size and sha256 are known beforehand, and go on where a dropped connection left off.

>>> download(RemoteFile("https://example.org/db.json", sha256="bcc8…", size=281), Path("/tmp/downloads"))
PosixPath('/tmp/downloads/bcc8…')

What arrived is kept as `<sha256>.part`; the next try, in this process or in another, asks the server for the rest (HTTP Range).
"""

from __future__ import annotations

import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from envs.errors import TaudojoError
from envs.fetch import file_sha256

#: Tries in a row that bring nothing new before the download is given up.
ATTEMPTS = 4
#: Seconds before the second try; doubled before each further one.
PAUSE_S = 1.0
#: Seconds without a byte after which the connection counts as dropped.
TIMEOUT_S = 30.0

_CHUNK = 1 << 16
#: Answers that another try may change, beside all 5xx.
_TEMPORARY = {408, 425, 429}


@dataclass(frozen=True)
class RemoteFile:
    """A file on a web server. `sha256` is the hex digest of its content, `size` its length in bytes."""

    url: str
    sha256: str
    size: int


class _Interrupted(Exception):
    """The transfer stopped in a way that another try may mend."""


def download(file: RemoteFile, folder: Path) -> Path:
    """The file, complete and checked, in `folder` under the name of its sha256; at once if it is there already.

    Raises:
        TaudojoError: no connection after some tries, an answer that will not change, or another content than expected.
        OSError: `folder` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    complete, part = folder / file.sha256, folder / f"{file.sha256}.part"
    with _alone(folder):
        if complete.is_file():
            return complete
        from_the_start = _size(part) == 0
        while True:
            _fetch(file, part)
            found = file_sha256(part)
            if found == file.sha256:
                return part.replace(complete)
            part.unlink()
            if from_the_start:
                raise TaudojoError(
                    f"{file.url} is not the file that the manifest lists: its sha256 is {found[:12]}…, expected "
                    f"{file.sha256[:12]}…; check the address, or a proxy on the way."
                )
            from_the_start = True  # the first bytes were from an earlier run, perhaps of another file


def _fetch(file: RemoteFile, part: Path) -> None:
    """Bring `part` to the full size, over as many connections as it takes."""
    failures = 0
    while (before := _size(part)) != file.size or not part.exists():
        try:
            _transfer(file, part)
        except _Interrupted as interruption:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS:
                raise TaudojoError(
                    f"{file.url} could not be downloaded ({interruption}); {_size(part)} of {file.size} bytes are kept: "
                    "check the network and run again to go on from there."
                ) from interruption
            time.sleep(PAUSE_S * 2 ** (failures - 1))


def _transfer(file: RemoteFile, part: Path) -> None:
    """One connection: append to `part` what the server sends."""
    have = _size(part)
    if have > file.size:
        part.unlink()
        have = 0
    response = _open(file, part, have)
    with response:
        start, total = _place(response, have)
        if total is not None and total != file.size:
            part.unlink(missing_ok=True)
            raise TaudojoError(_wrong_size(file, total))
        if start not in (0, have):
            part.unlink(missing_ok=True)
            raise _Interrupted(f"the server sent bytes from {start} instead of {have}")
        with part.open("ab" if start else "wb") as sink:  # a server without Range begins anew
            have = start
            while have <= file.size and (chunk := _read(response)):
                sink.write(chunk)
                have += len(chunk)
    if have > file.size:
        part.unlink()
        raise TaudojoError(_wrong_size(file, have, at_least=True))
    if have < file.size:
        raise _Interrupted(f"the connection closed after {have} of {file.size} bytes")


def _open(file: RemoteFile, part: Path, have: int) -> http.client.HTTPResponse:
    headers = {"Accept-Encoding": "identity", "User-Agent": "taudojo"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT_S
        )
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)
            raise TaudojoError(_wrong_size(file, have, at_most=True)) from error
        if error.code in _TEMPORARY or error.code >= 500:
            raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
        raise TaudojoError(
            f"{file.url} could not be downloaded (the server answers {error.code} {error.reason}); "
            "check the address in the manifest."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error
    except ValueError as error:
        raise TaudojoError(f"{file.url} is not an address to download from ({error}); mend the manifest.") from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _place(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """The position of the first byte that comes, and the length of the whole file where the server says it."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            return have, None
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _wrong_size(file: RemoteFile, found: int, *, at_least: bool = False, at_most: bool = False) -> str:
    about = "at least " if at_least else "at most " if at_most else ""
    fault = "truncated, or another version" if found < file.size or at_most else "another version"
    return (
        f"{file.url} is not the file that the manifest lists: it has {about}{found} bytes, the manifest says {file.size}; "
        f"it is {fault}: check the address, or get a manifest that fits it."
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that download to `folder`, so that no two write one file. Windows has no such lock."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
