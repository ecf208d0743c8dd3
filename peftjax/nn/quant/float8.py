"""8-bit float kernels: value = scale · q, q in float8 e4m3 (2209.05433, 2022), one scale a channel, for hardware that multiplies it.

    before  blocks/attn/q/kernel = W [L, K, N]
    after   blocks/attn/q/kernel = Float8(q=float8_e4m3fn [L, K, N], scale=f32 [L, 1, N])
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import node
from peftjax.nn.quant.quantised import Quantised, per_block

LARGEST = float(jnp.finfo(jnp.float8_e4m3fn).max)  # 448


@node(arrays=("q", "scale"), static=("rows", "dtype"))
@dataclasses.dataclass(frozen=True)
class Float8(Quantised):
    """The node. q: float8_e4m3fn [K, N]; scale: float32 [1, N]."""

    q: jax.Array
    scale: jax.Array
    rows: bool = False
    dtype: Any = jnp.dtype("float32")

    @property
    def stored(self):
        return self.q.shape

    def values(self):
        return self.q.astype(jnp.float32) * per_block(self.scale, self.q.shape[-2])


def to_float8(values: jax.Array, rows: bool, dtype) -> Float8:
    """Stored array float32 [.., K, N] -> node."""
    scale = jnp.max(jnp.abs(values), axis=-2, keepdims=True) / LARGEST
    step = per_block(jnp.where(scale > 0, scale, 1), values.shape[-2])
    return Float8(jnp.clip(values / step, -LARGEST, LARGEST).astype(jnp.float8_e4m3fn), scale, rows, dtype)
