"""Products with a quantised kernel V [K, N], whose dense form exists only inside them.

    product(x, node)    = x V        x [..., K] -> [..., N]          dx = dy Vᵀ
    transposed(x, node) = x Vᵀ       x [..., N] -> [..., K]          dx = dy V

Forward dequantises and multiplies; the node itself is all that is kept for the backward pass, which dequantises again; the node has no
gradient. So one weight is dense at a time, whatever is recomputed or kept around it. Where N is a vocabulary, not even one is: the
columns are worked through in slices. The dense form is what `merge()` gives, cast to x's dtype. Reverse mode only.
"""

import jax
import jax.numpy as jnp

from peftjax.nn.quant.choose import fused

SLICE = 8192  # columns that are dense at once
WIDE = 2 * SLICE  # above this many, columns are worked through in slices


@jax.custom_vjp
def product(x: jax.Array, node) -> jax.Array:
    """x [..., K] times the stored array [K, N] of a quantised node -> [..., N], in x's dtype."""
    rows = x.reshape(-1, x.shape[-1])
    matvec = fused(rows.shape[0], node)
    if matvec is not None:
        return matvec(rows, node).reshape(*x.shape[:-1], node.stored[-1])
    return plain_product(x, node)


@jax.custom_vjp
def transposed(x: jax.Array, node) -> jax.Array:
    """x [..., N] times the transposed stored array of a quantised node -> [..., K], in x's dtype."""
    return plain_transposed(x, node)


def _keep_node(function):
    return lambda x, node: (function(x, node), node)


def _times(function):
    def backward(node, dy):
        # Only once dy is there: otherwise the compiler finds the same dequantised weight in both passes, and keeps it in between.
        node, dy = jax.lax.optimization_barrier((node, dy))
        return function(dy, node), None

    return backward


def plain_product(x, node):
    """The product of dequantised values, right on every backend."""
    if node.stored[-1] <= WIDE:
        return _contract(x, node.values(), 0)

    def write(y, start, part):
        return jax.lax.dynamic_update_slice_in_dim(y, _contract(x, part.values(), 0), start, axis=y.ndim - 1)

    return _over_slices(write, _zeros((*x.shape[:-1], node.stored[-1]), x.dtype, x), node)


def plain_transposed(x, node):
    """The transposed product of dequantised values, right on every backend."""
    k, n = node.stored
    if n <= WIDE:
        return _contract(x, node.values(), 1)

    def add(y, start, part):
        columns = jax.lax.dynamic_slice_in_dim(x, start, part.stored[-1], axis=x.ndim - 1)
        return y + _contract(columns, part.values(), 1).astype(jnp.float32)

    return _over_slices(add, _zeros((*x.shape[:-1], k), jnp.float32, x), node).astype(x.dtype)


def _over_slices(step, y, node):
    """step(y, start, node of the columns from `start`) over all columns, SLICE at a time; the last slice may be narrower."""
    n = node.stored[-1]

    def part(start, size):
        return node.columns(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size, axis=leaf.ndim - 1))

    y = jax.lax.fori_loop(0, n // SLICE, lambda i, y: step(y, i * SLICE, part(i * SLICE, SLICE)), y)
    rest = n % SLICE
    return step(y, n - rest, part(n - rest, rest)) if rest else y


def _zeros(shape, dtype, x):
    """Zeros behind x: a loop around the product would otherwise keep an array of constants as large as all logits."""
    return jnp.broadcast_to(jax.lax.optimization_barrier((x, jnp.zeros((), dtype)))[1], shape)


def _contract(x, values, axis: int):
    return jax.lax.dot_general(x, values.astype(x.dtype), (((x.ndim - 1,), (axis,)), ((), ())))


product.defvjp(_keep_node(product), _times(plain_transposed))
transposed.defvjp(_keep_node(transposed), _times(plain_product))
