"""Which form of a product is used: chosen here and nowhere else, by backend and number of rows.

| backend | few rows (decoding) | more (training, prompts) |
|---|---|---|
| CPU | loops of `native`, up to its ROWS, where they can run | dequantise, multiply |
| GPU, TPU | programs of `pallas`, up to 64 rows, when `PEFTJAX_PALLAS=1` asks for them | dequantise, multiply |

The programs of `pallas` equal the plain form in the interpreter and lower for both backends; on a device they have not been timed, so that
they are not taken unasked.
"""

import functools
import os
from collections.abc import Callable

import jax

ROWS = 64  # of x, on GPUs and TPUs: with more, what is dequantised once serves many
SWITCH = "PEFTJAX_PALLAS"


def fused(rows: int, node, backend: str | None = None) -> Callable[[jax.Array, object], jax.Array] | None:
    """A kernel (x [rows, K], node) -> [rows, N] that dequantises as it multiplies, or None where the plain form is the one to take.
    `backend` is the one in use unless given."""
    backend = backend or jax.default_backend()
    if backend == "cpu":
        from peftjax.nn.quant import native  # behind the nodes, which it knows

        return native.matvec if rows <= native.ROWS and native.fits(node) and native.available() else None
    if os.environ.get(SWITCH) == "1" and rows <= ROWS:
        from peftjax.nn.quant import pallas  # slow to import

        return functools.partial(pallas.matmul, platform=backend) if pallas.fits(node, backend) else None
    return None
