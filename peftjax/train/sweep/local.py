"""Launcher: processes on this machine, a few at a time."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from peftjax.train.sweep.job import Job
from peftjax.train.workdir import at_work

POLL_S = 0.2


def local(jobs: Sequence[Job], processes: int = 1) -> None:
    """Trains each job in a process of its own, `processes` at a time; returns when all have ended. What they print goes into their folders.
    Interrupted, or ended by SIGTERM, it ends them; the same command goes on. Where it was killed they may be at work still: then they are
    waited for."""
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    waiting, alive = list(jobs), {}
    with _ended_by_term():
        try:
            while waiting or alive:
                free = [job for job in waiting if not any(map(at_work, job.folders))]
                for job in free[: processes - len(alive)]:
                    waiting.remove(job)
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


@contextlib.contextmanager
def _ended_by_term() -> Iterator[None]:
    """SIGTERM ends the block as an exception does. Its default would end this process alone: nobody would end those it started."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
