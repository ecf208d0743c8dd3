"""What a product of two thin matrices adds to a kernel that it stands beside: s AᵀB, read in each way that a kernel is read.

    times(x, A, B, s) = s (x Aᵀ) B                 lookup(ids, A, B, s) = s A[:, ids]ᵀ B
    back(x, A, B, s)  = s (x Bᵀ) A                 whole(A, B, s)       = s AᵀB, dense

a: [R, in]; b: [R, out]; s: []. On an embedding [V, D] `in` is V and `out` is D. `whole` takes leading axes too.
"""

import jax
import jax.numpy as jnp

from peftjax.nn.thin import expand, shrink


def times(x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, thin: jax.Array | None = None) -> jax.Array:
    """x [..., in] -> [..., out], in x's dtype. thin: x Aᵀ [..., R], where that was computed already."""
    return expand((shrink(x, a) if thin is None else thin) * scale.astype(x.dtype), b)


def shrink_frozen(x: jax.Array, a: jax.Array) -> jax.Array:
    """x Aᵀ [..., R], of an A without a gradient: unlike `shrink` it keeps nothing of x for the backward pass."""
    return jax.lax.dot_general(x, jax.lax.stop_gradient(a).astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())))


def lookup(ids: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, dtype) -> jax.Array:
    """ids [...] -> [..., out] in `dtype`."""
    thin = jnp.moveaxis(jnp.take(a, ids, axis=1), 0, -1).astype(dtype)
    return expand(thin * scale.astype(dtype), b)


def back(x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """x [..., out] -> [..., in], in x's dtype: the product with the transpose."""
    return expand(shrink(x, b) * scale.astype(x.dtype), a)


def whole(a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """a [..., R, in], b [..., R, out], scale [...] -> [..., in, out]."""
    return jnp.einsum("...ri,...ro->...io", a, b * scale[..., None, None])
