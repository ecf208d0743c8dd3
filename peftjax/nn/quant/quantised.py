"""What all quantised kernels share: how the stored array lies, and how the model reads it.

    stored axes  [.., K, N]      K: the axis the blocks run along, which products sum over;  N: the other one
    linear       logical [.., in, out] = [K, N]
    embedding    logical [.., V, D]    = [N, K]     with `rows=True`: a row is looked up by taking a column

Products are those of `peftjax.nn.quant.product`: the dense weight is never kept, and no gradient flows into the node. A quantised weight
has no trainable fields.
"""

from typing import Any, Self

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Kernel
from peftjax.nn.quant.product import product, transposed


class Quantised(Kernel):
    """Base of the nodes. Each is a frozen dataclass with the static fields `rows` and `dtype` (of the weight it came from), and says
    `stored` and `values()`; all its leaves end in the axis N unless it has a `columns` of its own."""

    rows: bool
    dtype: Any

    def __post_init__(self):
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))  # one spelling, as it is part of the tree's structure

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape [.., K, N] of the codes, one a weight."""
        raise TypeError(f"{type(self).__name__} does not say how it is stored")

    def values(self) -> jax.Array:
        """The dequantised array [.., K, N], float32."""
        raise TypeError(f"{type(self).__name__} cannot be dequantised")

    def columns(self, pick) -> Self:
        """The node of some of the N columns: `pick` takes them from the last axis of an array (a slice, or a gather)."""
        return jax.tree.map(pick, self)

    @property
    def shape(self) -> tuple[int, ...]:
        *lead, k, n = self.stored
        return (*lead, n, k) if self.rows else (*lead, k, n)

    def dot(self, x, key=None):
        return transposed(x, self) if self.rows else product(x, self)

    def attend(self, x, key=None):
        return product(x, self) if self.rows else transposed(x, self)

    def lookup(self, ids, dtype, key=None):
        if not self.rows:
            raise TypeError(f"{type(self).__name__} of shape {self.shape} was quantised as a linear kernel; an embedding needs rows=True")
        taken = self.columns(lambda leaf: jnp.take(leaf, ids.reshape(-1), axis=-1))
        rows = jnp.swapaxes(jax.lax.stop_gradient(taken).values(), -1, -2)
        return rows.astype(dtype).reshape(*ids.shape, rows.shape[-1])

    def merge(self):
        values = jax.lax.stop_gradient(self).values()
        return (jnp.swapaxes(values, -1, -2) if self.rows else values).astype(self.dtype)


def per_block(constants: jax.Array, k: int) -> jax.Array:
    """One constant a block [.., K/block, N] -> one a weight, float32 [.., K, N]."""
    *lead, blocks, n = constants.shape
    wide = jnp.broadcast_to(constants.astype(jnp.float32)[..., None, :], (*lead, blocks, k // blocks, n))
    return wide.reshape(*lead, k, n)


def in_blocks(values: jax.Array, block: int) -> jax.Array:
    """[.., K, N] -> [.., K/block, block, N]."""
    *lead, k, n = values.shape
    return values.reshape(*lead, k // block, block, n)
