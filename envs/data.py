"""Where the τ² data comes from: a PyPI package, a folder, or a list of addresses.

>>> source = open_source("packaged")
>>> (source.root / "domains" / "retail" / "db.json").exists()
True

`packaged` takes the data that the wheel `inspect-evals` carries (its code is never imported) and gives it upstream's
file names. Its databases equal those of τ²-bench v1.0.1; its retail and airline *tasks* are τ² v0.2.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from envs.download import RemoteFile, download
from envs.errors import TaudojoError
from envs.fetch import fetch_wheel, file_sha256
from envs.paths import cache_dir

SourceKind = Literal["packaged", "path", "fetch"]

PACKAGE, PACKAGE_VERSION = "inspect-evals", "0.26.0"
PACKAGE_SHA256 = "b76d15813182807da141a0f06bb6f18a5f82d1f06291ec2633bb84cdf661f8d0"
_PACKAGE_DATA = "inspect_evals/tau2/data/"
_DOMAINS = ("mock", "retail", "airline", "telecom")

#: The manifest that `fetch` follows when it is given none: τ²-bench at the commit that all our recordings come from.
MANIFEST = Path(__file__).parent / "manifests" / "tau2-v1.0.1.json"


@dataclass(frozen=True)
class DataSource:
    """`root` contains `domains/`. Every result names `source` and `version`."""

    root: Path
    source: str
    version: str

    def file(self, *parts: str) -> Path:
        """A file of the data.

        Raises:
            TaudojoError: it is not there.
        """
        path = self.root.joinpath(*parts)
        if not path.is_file():
            raise TaudojoError(
                f"The τ² data in {self.root} has no file {'/'.join(parts)}; use the folder that contains domains/."
            )
        return path


def open_source(kind: str, path: str | Path | None = None, cache: str | Path | None = None) -> DataSource:
    """The data, downloaded to `cache` when it is not there yet.

    Args:
        kind: `packaged`, `path` (`path` is the folder that contains `domains/`), or `fetch` (`path` is a manifest: a
            JSON file `{"version": str, "files": [{"path", "url", "sha256", "size"}]}`; without one, `MANIFEST`).

    Raises:
        TaudojoError: a missing file or folder, no network, or a file with another content.
    """
    folder = Path(cache) if cache else cache_dir()
    if kind == "packaged":
        return _packaged(folder)
    if kind == "path":
        return _from_folder(path)
    if kind == "fetch":
        return _fetched(path, folder)
    raise TaudojoError(f"There is no data source {kind!r}; choose packaged, path or fetch.")


def _packaged(cache: Path) -> DataSource:
    root = cache / "tau2" / f"{PACKAGE}-{PACKAGE_VERSION}"

    def fill(folder: Path) -> None:
        wheel = fetch_wheel(f"{PACKAGE}=={PACKAGE_VERSION}", PACKAGE_SHA256, folder)
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(_PACKAGE_DATA) and not name.endswith("/"):
                    _unpack(archive, name, folder)
        wheel.unlink()

    _build_once(root, fill)
    return DataSource(root, source=f"{PACKAGE} {PACKAGE_VERSION}", version=f"{PACKAGE} {PACKAGE_VERSION} (tau2 v0.2 tasks)")


def _unpack(archive: zipfile.ZipFile, name: str, folder: Path) -> None:
    """One data file under upstream's name: the package has policies as .txt and large files gzipped."""
    relative = PurePosixPath(name.removeprefix(_PACKAGE_DATA))
    if relative.parts[0] == "domains" and relative.parts[1] not in _DOMAINS:
        return
    content = archive.read(name)
    if relative.suffix == ".gz":
        relative, content = relative.with_suffix(""), gzip.decompress(content)
    elif relative.suffix == ".txt":
        relative = relative.with_suffix(".md")
    target = folder / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def _from_folder(path: str | Path | None) -> DataSource:
    if path is None:
        raise TaudojoError("The data source `path` needs a folder: data/tau2 of a τ²-bench checkout (it contains domains/).")
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise TaudojoError(f"The data folder {root} does not exist.")
    if not (root / "domains").is_dir():
        raise TaudojoError(
            f"The folder {root} has no domains/ in it (domains/retail/db.json and so on); give data/tau2 of a τ²-bench checkout."
        )
    return DataSource(root, source="path", version=_version_of(root))


def _version_of(root: Path) -> str:
    """The release that the folder's files are of, as far as `MANIFEST` lists them."""
    _, version, files = _read_manifest(MANIFEST)
    present = [(root / name, file) for name, file in files if (root / name).is_file()]
    for path, file in present:
        if path.stat().st_size != file.size or file_sha256(path) != file.sha256:
            return f"unrecognised ({path.relative_to(root).as_posix()} is not that of {version})"
    return version if present else "unknown"


def _fetched(path: str | Path | None, cache: Path) -> DataSource:
    manifest = MANIFEST if path is None else Path(path).expanduser()
    content, version, files = _read_manifest(manifest)
    downloads = cache / "downloads"

    def fill(folder: Path) -> None:
        complete = [(name, download(file, downloads)) for name, file in files]
        for name, downloaded in complete:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(downloaded, target)

    root = cache / "tau2" / f"fetch-{hashlib.sha256(content).hexdigest()[:12]}"
    if not root.is_dir():
        _build_once(root, fill)
        for _, file in files:
            (downloads / file.sha256).unlink(missing_ok=True)
    return DataSource(root, source="fetch", version=version)


def _read_manifest(manifest: Path) -> tuple[bytes, str, list[tuple[str, RemoteFile]]]:
    """The file's bytes, its version, and what it lists by path."""
    try:
        content = manifest.read_bytes()
        listing = json.loads(content)
        version = str(listing["version"])
        files = [(str(f["path"]), RemoteFile(str(f["url"]), str(f["sha256"]), int(f["size"]))) for f in listing["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaudojoError(f"The manifest {manifest} cannot be read ({type(error).__name__}: {error}).") from error
    for name, file in files:
        if Path(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise TaudojoError(f"The manifest {manifest} names a file outside its folder: {name}.")
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
            raise TaudojoError(f"The manifest {manifest} gives {name} the sha256 {file.sha256!r}; write 64 hex digits.")
        if not file.url.startswith(("https://", "http://")):
            raise TaudojoError(f"The manifest {manifest} gives {name} the address {file.url!r}; it needs http:// or https://.")
    return content, version, files


def _build_once(root: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder and rename it to `root`, so that no half-made one is ever seen. Nothing to do if `root` exists."""
    if root.is_dir():
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}-"))
        try:
            fill(temporary)
            temporary.chmod(0o755)
            temporary.rename(root)
        except OSError:
            if not root.is_dir():  # else another process was faster, and its folder is as good
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise TaudojoError(
            f"The data could not be written to {root} ({error}); set TAUDOJO_CACHE to a folder with space."
        ) from error
