"""The launchers by name, with what a command line says to them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from peftjax.train.population import Halving
from peftjax.train.sweep.launch import Launcher
from peftjax.train.sweep.local import local
from peftjax.train.sweep.ray_cluster import on_ray
from peftjax.train.sweep.sky import sky
from peftjax.train.sweep.slurm import slurm
from peftjax.train.sweep.together import in_populations

NAMES = ("local", "population", "slurm", "ray", "sky")


def launcher(
    kind: str, folder: str | Path, *, processes: int = 1, resources: Mapping[str, Any] | None = None, store: str = "", submit: bool = True,
    rungs: Sequence[int] = (),
) -> Launcher:
    """One of `NAMES`, ready to be given jobs.

    Args:
        kind: which.
        folder: of the sweep.
        processes: jobs at a time where this machine trains them.
        resources: what one job takes, in the engine's own words: of submitit's executor, of `ray.remote`, or of a SkyPilot task.
        store: of sky, the bucket in which the work directories are.
        submit: of sky, whether the tasks are handed in.
        rungs: of population, the steps at which the worse half stops; none trains all to the end.

    Raises:
        ValueError: what the launcher has no use for.
    """
    for said, users in ((resources, ("slurm", "ray", "sky")), (store, ("sky",)), (rungs, ("population",))):
        if said and kind not in users:
            raise ValueError(f"the launcher {kind} has no use for {said!r}; {', '.join(users)} would have")
    here = functools.partial(local, processes=processes)
    return {
        "local": here,
        "population": functools.partial(in_populations, rest=here, halving=Halving(tuple(rungs)) if rungs else None),
        "slurm": functools.partial(slurm, folder=folder, resources=resources),
        "ray": functools.partial(on_ray, resources=resources),
        "sky": functools.partial(sky, folder=folder, resources=resources, store=store, submit=submit),
    }[kind]


def as_resources(words: Sequence[str]) -> dict[str, Any]:
    """`["gpus_per_node=1", "use_spot=true"]` -> {"gpus_per_node": 1, "use_spot": True}: values as in YAML.

    Raises:
        ValueError: a word without `=`.
    """
    for word in words:
        if "=" not in word:
            raise ValueError(f"--resources has {word!r}; give name=value, as in timeout_min=60")
    return {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words)}
