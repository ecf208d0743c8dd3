"""Which form of a product is used: chosen here and nowhere else, by backend and number of rows."""

from collections.abc import Callable

import jax


def fused(rows: int, node) -> Callable[[jax.Array, object], jax.Array] | None:
    """A kernel (x [rows, K], node) -> [rows, N] that dequantises as it multiplies, or None where the plain form is the one to take."""
    if jax.default_backend() == "cpu":
        from peftjax.nn.quant import native  # behind the nodes, which it knows

        if rows <= native.ROWS and native.fits(node) and native.available():
            return native.matvec
    return None
