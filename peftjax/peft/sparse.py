"""Matrices of few entries: which ones, and the dense matrix that they make."""

import jax
import jax.numpy as jnp
import numpy as np


def scatter(values: jax.Array, rows: jax.Array, columns: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """values, rows, columns [n] -> [in, out] = `shape`, zero elsewhere; with a leading L in all four or in none. No entry comes twice."""
    if values.ndim > 1:
        return jax.vmap(lambda *entries: scatter(*entries, shape[1:]))(values, rows, columns)
    return jnp.zeros(shape, values.dtype).at[rows, columns].add(values, unique_indices=True)


def times(x: jax.Array, values: jax.Array, rows: jax.Array, columns: jax.Array, width: int) -> jax.Array:
    """x [..., in] times the same matrix [in, out] without forming it -> [..., out], in x's dtype."""
    picked = jnp.moveaxis(jnp.take(x, rows, axis=-1), -1, 0)
    picked = picked * values.astype(x.dtype).reshape(-1, *(1,) * (picked.ndim - 1))
    return jnp.moveaxis(jax.ops.segment_sum(picked, columns, width), 0, -1)


def positions(flat: jax.Array | np.ndarray, width: int) -> tuple[jax.Array, jax.Array]:
    """(rows, columns), int32, of positions in a matrix with `width` columns, counted row by row."""
    return jnp.asarray(flat // width, jnp.int32), jnp.asarray(flat % width, jnp.int32)
