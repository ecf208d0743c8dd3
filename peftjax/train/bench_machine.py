"""What this machine can do at best, measured beside what is timed: its speed drifts, so that both are taken in one run, in turns.

    gemm_rate()   FLOP/s of a square float32 product            read_rate()   bytes/s of a sum over an array that no cache holds
                                                                copy_rate()   bytes/s of a copy of it, read and written both counted
"""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.train.bench_worker import serve

GEMM_SIZE = 2048
ARRAY_BYTES = 1 << 29  # several times the last cache of any machine, about what SmolLM2-135M holds in float32


def median_seconds(run: Callable[[], jax.Array], repeats: int) -> float:
    """Median time of `run`, after one call to warm up."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@jax.jit
def _square(x):
    return x @ x


@jax.jit
def _sum(x):
    return jnp.sum(x)


@functools.partial(jax.jit, donate_argnums=1, keep_unused=True)
def _copy_into(source, target):
    """`source` in the buffer of `target`. Plus one, since a plain copy would hand `source` itself back."""
    return source + 1


def gemm_rate(size: int = GEMM_SIZE, repeats: int = 7) -> float:
    """FLOP/s of a square float32 matrix product of this size."""
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    return 2 * size**3 / median_seconds(lambda: _square(x), repeats)


def read_rate(array_bytes: int = ARRAY_BYTES, repeats: int = 5) -> float:
    """Bytes/s of a sum of a float32 array."""
    x = jnp.ones(array_bytes // 4, jnp.float32)
    return x.nbytes / median_seconds(lambda: _sum(x), repeats)


def copy_rate(array_bytes: int = ARRAY_BYTES, repeats: int = 5) -> float:
    """Bytes/s of a copy of a float32 array into another that is there already; what is read and what is written both count."""
    source, target = jnp.ones(array_bytes // 4, jnp.float32), [jnp.zeros(array_bytes // 4, jnp.float32)]

    def copy():
        target.append(_copy_into(source, target.pop()))
        return target[0]

    return 2 * source.nbytes / median_seconds(copy, repeats)


if __name__ == "__main__":  # for peftjax.train.bench_pair
    serve(lambda: ({}, {"gemm": lambda: {"flops": gemm_rate(repeats=3)}}))
