"""How many threads LAPACK takes for one matrix.

Threads of OpenBLAS wait for each other by spinning. Where other programs have the cores, an SVD of 576 x 1536 on two threads took 27 times
the CPU time that it takes on one, and every script that takes weights apart does hundreds of them.
"""

import contextlib
from collections.abc import Iterator

import scipy.linalg  # noqa: F401 (loads the library whose LAPACK JAX calls, so that it is limited too)
from threadpoolctl import threadpool_limits

from peftjax.peft.select import parameters

SMALL = 2048  # the shorter side of a matrix up to which one thread is enough


@contextlib.contextmanager
def one_thread(params: dict) -> Iterator[None]:
    """Within it numpy's, scipy's and JAX's LAPACK work on one thread, if every linear kernel of the tree is small; else as they would."""
    if all(min(target.value.shape[-2:]) <= SMALL for target in parameters(params, ("kernel",))):
        with threadpool_limits(1, user_api="blas"):
            yield
    else:
        yield
