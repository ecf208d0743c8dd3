"""Where each run of a sweep stands, from its work directory alone."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftjax.train.ending import read_outcome
from peftjax.train.logs import FILE as METRICS_FILE
from peftjax.train.points import Point
from peftjax.train.sweep.folder import planned

TAIL = 1 << 14  # bytes of a log that are looked at


@dataclasses.dataclass(frozen=True)
class Standing:
    """One run.

    Attributes:
        point: what it is about.
        folder: its work directory.
        status: "done", "stopped", "failed", "training" (begun, and not ended), or "waiting".
        step, steps: done and asked for.
        loss: of the last logged step; None before it.
        error: of a failed one.
    """

    point: Point
    folder: Path
    status: str
    step: int
    steps: int
    loss: float | None
    error: str | None


def standings(folder: str | Path) -> list[Standing]:
    """All runs of a sweep, in the order in which they were asked for."""
    return [standing(point, run) for point, run in planned(folder)]


def standing(point: Mapping[str, Any], folder: Path) -> Standing:
    """One of them."""
    outcome, last = read_outcome(folder), last_step(folder)
    status = outcome.status if outcome.status != "unfinished" else "training" if last or (folder / ".lock").exists() else "waiting"
    steps = json.loads((folder / "config.json").read_text())["train"]["steps"]
    return Standing(dict(point), folder, status, last.get("step", 0), steps, last.get("loss"), outcome.error)


def last_step(folder: Path) -> dict:
    """The last whole line of a training step in the run's log, {} where there is none; only the log's end is read."""
    path = folder / METRICS_FILE
    if not path.exists():
        return {}
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        if line.startswith(b"{") and b'"loss"' in line:
            return json.loads(line)
    return {}
