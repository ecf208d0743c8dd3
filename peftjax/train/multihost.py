"""One run on several hosts: one process a host, each the same `train.py` command with `--multihost`.

    host 0    python scripts/train.py --config ... --workdir /shared/run --multihost --coordinator host0:1234 --processes 2 --process 0
    host 1    python scripts/train.py --config ... --workdir /shared/run --multihost --coordinator host0:1234 --processes 2 --process 1

On Cloud TPUs, under Slurm, Open MPI and Kubernetes `--multihost` alone is enough: JAX finds the rest. The work directory must be one that
all processes see. Process 0 writes; all of them take part in saving and reading checkpoints. On CPUs, collectives go through Gloo.
"""

import contextlib
import hashlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping

import jax
import numpy as np

HEARTBEAT_S = 30  # after so long without a word of one process, JAX ends the others


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins this process to the others; before any other call of JAX.

    Args:
        coordinator: `host:port` of process 0; None for what the environment says (`JAX_COORDINATOR_ADDRESS`, or the cluster).
        processes: how many there are; None as above.
        process: which one this is, from 0; None as above.

    Raises:
        ValueError: neither the arguments nor the environment say which processes there are.
    """
    try:
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT_S)
    except ValueError as error:
        raise ValueError(
            f"--multihost: {error} Found coordinator {coordinator!r}, processes {processes!r}, process {process!r}, and no cluster that "
            "JAX knows; give --coordinator host:port, --processes and --process"
        ) from error


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Of several processes, one that fails ends at once, so that the others see it and end as well. Python's ordinary end would wait for
    them first, while they wait for it in the next collective."""
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        try:
            traceback.print_exc()
            which = f"process {jax.process_index()} of {jax.process_count()}"
            print(f"{which} ends, and the others with it. Where the error above is one of communication, another process ended before: see "
                  "what that one printed. The same commands go on from the last checkpoint.", file=sys.stderr, flush=True)
            sys.stdout.flush()
        finally:  # also where nobody reads what is printed
            os._exit(1)


def require_same(facts: Mapping[str, str]) -> None:
    """Refuses to go on where processes differ in one of these: each would compute something else, and nobody would see it.

    Raises:
        ValueError: on all processes, with the names of what differs and where.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    ours = np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in facts.values()])
    everyone = multihost_utils.process_allgather(ours)
    different = {
        name: [number for number, rows in enumerate(everyone) if (rows[at] != everyone[0][at]).any()] for at, name in enumerate(facts)
    }
    lines = [f"{name} of process {', '.join(map(str, others))}" for name, others in different.items() if others]
    if lines:
        here = ", ".join(f"{name} {text[:60]}" for name, text in facts.items() if different[name])
        raise ValueError(f"the processes of this run do not agree: other than process 0's is the {'; the '.join(lines)}. Here: {here}")
