"""Launcher: a Ray cluster (the extra `ray`). The machines share the folder of the sweep and have the project installed at one place."""

from collections.abc import Mapping, Sequence
from typing import Any

from peftjax.train.sweep.job import Job


def on_ray(jobs: Sequence[Job], resources: Mapping[str, Any] | None = None, address: str | None = None) -> None:
    """Hands each job to the cluster as a task and waits for them. Interrupted, it ends them.

    Args:
        jobs: to be trained.
        resources: what a job takes, as `ray.remote` has it: num_cpus, num_gpus, resources={"TPU": 4}, memory, ...
        address: of the cluster; None is what `RAY_ADDRESS` says, else a cluster of this machine alone that ends with the sweep.

    Raises:
        ModuleNotFoundError: ray is not installed.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the launcher ray needs Ray: pip install 'peftjax[ray]'") from error
    own = not ray.is_initialized()
    if own:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    tasks = {ray.remote(**{"num_cpus": 1, "max_retries": 0} | dict(resources or {}))(Job.__call__).remote(job): job for job in jobs}
    waiting = list(tasks)
    try:
        while waiting:
            ended, waiting = ray.wait(waiting)
            for task in ended:
                try:
                    ray.get(task)
                except ray.exceptions.RayError:  # the machine ended it before it could say so
                    tasks[task].ended(1)
    finally:
        for task in waiting:
            ray.cancel(task)
        if own:
            ray.shutdown()
