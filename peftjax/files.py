"""Files written whole or not at all, and a lock between processes.

    with replacing(path) as partial:      # a name in the same folder; replacing_folder(path) for a whole folder
        partial.write_text(...)           # renamed to `path` at the end, removed if the block raises
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well; readers see the old or the new file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and an older folder's; else nothing changes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = partial.with_name(f"{partial.name}.old")
    try:
        yield partial
        partial.chmod(0o755)
        if path.exists():
            os.rename(path, old)
        os.rename(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not path.exists():  # stopped between the two renames
            os.rename(old, path)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the operating system's exclusive lock on the file `path`; the lock falls when the process dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
