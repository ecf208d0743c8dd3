"""Runs of a study, done as populations: those that can share a program train in it together, the others in turn.

A run that is done is left alone. One that diverged says so in its folder and is not tried again:

    failed.json     {"error": "loss at step 7 is nan ...", "step": 7}
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from peftjax.files import replacing
from peftjax.interop.base import Base
from peftjax.train.loop import run
from peftjax.train.population import programs, run_population
from peftjax.train.workdir import require_config

FAILED = "failed.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that there is to do."""

    config: Any
    folder: Path


def left(jobs: Iterable[Job]) -> list[Job]:
    """Those that are neither done nor diverged.

    Raises:
        ValueError: a folder that holds a run of another config, done or not: its result would be told as one of this.
    """
    found = []
    for job in jobs:
        require_config(job.folder, job.config)
        if not (job.folder / "result.json").exists() and failure(job.folder) is None:
            found.append(job)
    return found


def failure(folder: Path) -> str | None:
    """How the run in a folder diverged; None where it did not. One that failed before its first step is to be tried again."""
    path = folder / FAILED
    mark = json.loads(path.read_text()) if path.exists() else {}
    return mark["error"] if "step" in mark else None


def execute(jobs: Sequence[Job], base: Base | None = None, most: int = 32, say: Callable[[str], None] = print) -> None:
    """Does all jobs that are left.

    Args:
        base: loaded already, as the configs have it.
        most: members of a program.

    Raises:
        ValueError: whatever in a config does not fit; such a study cannot go on.
    """
    todo = left(jobs)
    if not todo:
        return
    groups = programs([job.config for job in todo], most)
    for number, group in enumerate(groups, 1):
        together = [todo[place] for place in group]
        say(f"program {number} of {len(groups)}: {len(together)} runs, {together[0].folder} and on")
        if len(together) == 1:
            _alone(together[0], say)
            continue
        outcomes = run_population([job.config for job in together], [job.folder for job in together], base=base, say=lambda _: None)
        for job, outcome in zip(together, outcomes, strict=True):
            if outcome.status == "failed":
                say(f"{job.folder} failed: {outcome.error}")
                if failure(job.folder) is None:
                    raise ValueError(f"{job.folder}: {outcome.error}")


def _alone(job: Job, say: Callable[[str], None]) -> None:
    try:
        run(job.config, job.folder)
    except FloatingPointError as error:
        fail(job.folder, error)
        say(f"{job.folder} failed: {error}")


def fail(folder: Path, error: Exception, step: int | None = None) -> None:
    """Leaves word in a run's folder that it diverged."""
    with replacing(folder / FAILED) as partial:
        partial.write_text(json.dumps({"error": str(error), "step": step}))
