"""The dtype of what must not be rounded to a narrow one: sums of norms, scores, merged weights."""

import jax.numpy as jnp


def wide(dtype) -> jnp.dtype:
    """float32 for every narrower dtype, and float64 for float64: whoever computes in that (`jax.enable_x64`) wants all of it."""
    return jnp.promote_types(dtype, jnp.float32)
