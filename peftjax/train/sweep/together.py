"""Launcher: points that can share one program are trained in it together, as a population; the rest by another launcher.

    python -m peftjax.train.sweep.together FOLDER FOLDER ...      one such population, from what a sweep planned in the folders
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from peftjax.interop.base import Base, load_base
from peftjax.train.population import Halving, programs, run_population
from peftjax.train.startup import precision, use_compilation_cache
from peftjax.train.stored_config import stored_config
from peftjax.train.sweep.folder import Run
from peftjax.train.sweep.job import Job


def packed(runs: Sequence[Run]) -> list[Job]:
    """Runs that can share a program as one job, each of the others as a job of its own."""
    return [Job(tuple(runs[number].folder.absolute() for number in group)) for group in programs([run.config for run in runs])]


def in_populations(
    jobs: Sequence[Job], rest: Callable[[Sequence[Job]], None], *, halving: Halving | None = None, say: Callable[[str], None] = print,
) -> None:
    """Trains the jobs of several runs one after the other in this process, and hands those of one to `rest`. A base is loaded once for all
    populations in a row that train on it.

    Args:
        jobs: made by `packed`.
        rest: a launcher.
        halving: by which losers stop early, in each population; None trains all to the end.
        say: is told results.
    """
    single = [job for job in jobs if len(job.folders) == 1]
    several = [job for job in jobs if len(job.folders) > 1]
    held: tuple[Any, Base | None] = (None, None)
    for job in several:
        held = held_base(job, held)
        train_together(job.folders, base=held[1], halving=halving, say=say)
    if single:
        rest(single)


def train_together(
    folders: Sequence[Path], *, base: Base | None = None, halving: Halving | None = None, say: Callable[[str], None] = print,
) -> None:
    """One population, from the configs in its folders."""
    run_population([stored_config(folder / "config.json") for folder in folders], folders, base=base, halving=halving, say=say)


def held_base(job: Job, held: tuple[Any, Base | None]) -> tuple[Any, Base]:
    """The base that a job trains on with what names it: the one that is held where it is that, else loaded."""
    wanted = stored_config(job.folders[0] / "config.json").base
    key = (wanted.uri, precision(wanted.dtype).name, repr(wanted.quantise))
    if held[0] == key and held[1] is not None:
        return held[0], held[1]
    use_compilation_cache()
    return key, load_base(wanted.uri, dtype=key[1], quantise=wanted.quantise)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    train_together([Path(folder) for folder in sys.argv[1:]])
