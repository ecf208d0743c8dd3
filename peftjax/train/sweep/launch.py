"""A sweep from its points to its comparison: the same command starts it, goes on with it, or finds it done."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.train.ending import Outcome
from peftjax.train.sweep.folder import Run, plan
from peftjax.train.sweep.job import Job, alone
from peftjax.train.sweep.live import shown

Launcher = Callable[[Sequence[Job]], None]  # trains these, or has them trained, and returns when nothing is left to wait for


def launch(
    config: ConfigDict, points: Sequence[Mapping[str, Any]], folder: str | Path, launcher: Launcher, *, say: Callable[[str], None] = print,
    live: bool = True, pack: Callable[[Sequence[Run]], list[Job]] = alone,
) -> list[Outcome]:
    """Trains the points that are not done yet, by a launcher; how the run of each point ended, in their order.

    Args:
        config: the points are set on it.
        points: see `peftjax.train.points`; those that come to one config are one run.
        folder: of the sweep; created, or gone on with.
        launcher: `local`, `slurm`, ... with its own settings bound; called once with the jobs in which a run is left, those that failed
            before among them. Runs of such a job that have ended are found done.
        say: is told what is left to do.
        live: whether the table of all points is shown meanwhile.
        pack: makes jobs of runs; `alone` one of each, `packed` one of those that can share a program.

    Raises:
        ValueError: a point that does not fit, or a folder of another sweep.
    """
    runs = plan(config, points, folder)
    different = list({run.folder: run for run in runs}.values())
    left = [run for run in different if run.outcome.status not in ("done", "stopped")]
    again = sum(run.outcome.status == "failed" for run in left)
    twice = f" ({len(points)} points, some the same)" if len(points) > len(different) else ""
    folders = {run.folder.absolute() for run in left}
    jobs = [job for job in pack(different) if folders & set(job.folders)]  # of runs that have ended too: those that halve compare with them
    together = f" in {len(jobs)} jobs" if len(jobs) < len(left) else ""
    say(f"{folder}: {len(different)} runs{twice}, {len(different) - len(left)} ended before, {len(left)} to train{together}"
        + (f", {again} of them failed before" if again else ""))
    if left:
        with shown(Path(folder)) if live else contextlib.nullcontext():
            launcher(jobs)
    return [run.outcome for run in runs]
