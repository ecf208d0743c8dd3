"""How a run ended, as its folder says, whoever trained it.

    result.json     done
    stopped.json    stopped early by successive halving: {"step", "validation_loss"} of the comparison that it lost
    failed.json     failed: {"error": "FloatingPointError: loss at step 3 is nan ...", "time": ...}; removed when the run is started again

A folder with none of them was never started, is being trained, or was interrupted: the same command goes on with it.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

from peftjax.files import replacing

DONE, STOPPED, FAILED = "result.json", "stopped.json", "failed.json"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: its work directory.
        status: "done", "stopped", "failed", or "unfinished".
        error: of a failed one.
    """

    folder: Path
    status: str
    error: str | None = None


def read_outcome(folder: str | Path) -> Outcome:
    """What the folder says; a folder that is not there is unfinished."""
    folder = Path(folder)
    if (folder / DONE).exists():
        return Outcome(folder, "done")
    if (folder / STOPPED).exists():
        return Outcome(folder, "stopped")
    if (folder / FAILED).exists():
        return Outcome(folder, "failed", json.loads((folder / FAILED).read_text())["error"])
    return Outcome(folder, "unfinished")


def write_failure(folder: str | Path, error: BaseException | str) -> None:
    """Says in the folder that its run failed, and of what."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    with replacing(Path(folder) / FAILED) as partial:
        partial.write_text(json.dumps({"error": text, "time": time.time()}))


def clear_failure(folder: str | Path) -> None:
    """Forgets an earlier failure: the run is tried again."""
    (Path(folder) / FAILED).unlink(missing_ok=True)


@contextlib.contextmanager
def failures_told(folder: str | Path, enabled: bool = True) -> Iterator[None]:
    """An error that ends the block is written into the folder and goes on; an interrupt is no failure."""
    if not enabled:
        yield
        return
    clear_failure(folder)
    try:
        yield
    except Exception as error:
        write_failure(folder, error)
        raise
