"""Launcher: Slurm, through submitit (the extra `slurm`). All jobs are handed in as one array, into a folder that the machines share.

A job that loses its machine, or whose time is up, is queued again by submitit and goes on from its last checkpoint. What was handed in is
noted in `slurm/jobs.json`: the same command waits for jobs that are still there instead of handing them in twice.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.files import replacing
from peftjax.train.sweep.job import Job

POLL_S = 2.0
DEFAULTS = {"name": "peftjax", "timeout_min": 24 * 60}


def slurm(jobs: Sequence[Job], folder: str | Path, resources: Mapping[str, Any] | None = None, cluster: str = "slurm") -> None:
    """Hands the jobs in and waits for them. Interrupted, it leaves them in the queue.

    Args:
        jobs: to be trained.
        folder: of the sweep, seen by all machines.
        resources: what a job takes, as submitit's executor has it: timeout_min, slurm_partition, gpus_per_node, cpus_per_task, mem_gb, ...
        cluster: "slurm"; "local" is submitit's own processes, by which this is tried out.

    Raises:
        ModuleNotFoundError: submitit is not installed.
        RuntimeError: of submitit, where there is no Slurm; NameError for a resource that it does not know.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the launcher slurm needs submitit: pip install 'peftjax[slurm]'") from error
    kinds = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}
    own = Path(folder).absolute() / "slurm"
    noted = json.loads((own / "jobs.json").read_text()) if (own / "jobs.json").exists() else {}
    handles = {job: kinds[cluster](own, noted[job.name]) for job in jobs if job.name in noted}
    handles = {job: handle for job, handle in handles.items() if not handle.done()}
    new = [job for job in jobs if job not in handles]
    if new:
        executor = submitit.AutoExecutor(own, cluster=cluster)
        executor.update_parameters(**DEFAULTS | dict(resources or {}))
        with executor.batch():
            handed = [executor.submit(job) for job in new]
        handles |= dict(zip(new, handed, strict=True))
        with replacing(own / "jobs.json") as partial:
            partial.write_text(json.dumps(noted | {job.name: handle.job_id for job, handle in handles.items()}, indent=1))
    while alive := [handle for handle in handles.values() if not handle.done()]:
        time.sleep(POLL_S if len(alive) else 0)
    for job, handle in handles.items():
        if handle.exception() is not None:  # the machine ended it before it could say so
            job.ended(1)
