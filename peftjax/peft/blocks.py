"""Block-diagonal orthogonal matrices, for the methods that rotate what goes into a weight."""

import jax
import jax.numpy as jnp


def in_blocks(x: jax.Array, blocks: jax.Array) -> jax.Array:
    """x [..., N C] times the block-diagonal matrix of blocks [N, C, C], or of one block [1, C, C] in all places -> x's shape and dtype."""
    size = blocks.shape[-1]
    parts = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
    if blocks.shape[0] == 1:
        turned = jnp.einsum("...nc,cd->...nd", parts, blocks[0].astype(x.dtype))
    else:
        turned = jnp.einsum("...nc,ncd->...nd", parts, blocks.astype(x.dtype))
    return turned.reshape(x.shape)


def cayley(q: jax.Array) -> jax.Array:
    """(I - Q)(I + Q)⁻¹ of skew-symmetric q [..., C, C], float32: orthogonal, and the identity at 0."""
    eye = jnp.broadcast_to(jnp.eye(q.shape[-1]), q.shape)
    # X (I + Q) = I - Q, and both factors commute
    return jnp.linalg.solve(eye + q, eye - q)


def orthonormal(rows: jax.Array) -> jax.Array:
    """The rows [R, D] made orthonormal, each by the ones before it (Gram-Schmidt), float32. Orthonormal rows stay what they are.

    P Pᵀ = L Lᵀ (Cholesky) and the result is L⁻¹ P: differentiable, and no larger problem than R equations.
    """
    rows = rows.astype(jnp.float32)
    lower = jnp.linalg.cholesky(jnp.matmul(rows, rows.T, precision="highest"))
    return jax.lax.linalg.triangular_solve(lower, rows, left_side=True, lower=True)
