"""Launcher: processes on this machine, a few at a time."""

import collections
import time
from collections.abc import Sequence

from peftjax.train.sweep.job import Job

POLL_S = 0.2


def local(jobs: Sequence[Job], processes: int = 1) -> None:
    """Trains each job in a process of its own, `processes` at a time; returns when all have ended. What they print goes into their folders.
    Interrupted, it ends them; the same command goes on."""
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    waiting, alive = collections.deque(jobs), {}
    try:
        while waiting or alive:
            while waiting and len(alive) < processes:
                job = waiting.popleft()
                alive[job] = job.start()
            time.sleep(POLL_S)
            for job, process in list(alive.items()):
                if process.poll() is not None:
                    job.ended(alive.pop(job).returncode)
    finally:
        for process in alive.values():
            process.terminate()
        for process in alive.values():
            process.wait()
