"""8-bit integer kernels: value = scale · q, q of -127 to 127.

    before  blocks/attn/q/kernel = W [L, K, N]
    after   blocks/attn/q/kernel = Int8(q=int8 [L, K, N], scale=[L, K/block, N])

One block that is all of K is one scale a channel (an output of a linear kernel, a row of an embedding), kept in float32; GGUF's Q8_0 is
block 32 with float16 scales.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import node
from peftjax.nn.quant.quantised import Quantised, in_blocks, per_block


@node(arrays=("q", "scale"), static=("rows", "dtype"))
@dataclasses.dataclass(frozen=True)
class Int8(Quantised):
    """The node. q: int8 [K, N]; scale: [K/block, N], float32 for one block, else float16."""

    q: jax.Array
    scale: jax.Array
    rows: bool = False
    dtype: Any = jnp.dtype("float32")

    @property
    def stored(self):
        return self.q.shape

    def values(self):
        return self.q.astype(jnp.float32) * per_block(self.scale, self.q.shape[-2])


def to_int8(values: jax.Array, block: int, rows: bool, dtype) -> Int8:
    """Stored array float32 [.., K, N] -> node; `block` divides K."""
    k = values.shape[-2]
    scale = jnp.max(jnp.abs(in_blocks(values, block)), axis=-2) / 127
    scale = scale if block == k else scale.astype(jnp.float16)
    step = per_block(jnp.where(scale > 0, scale, 1), k)
    return Int8(jnp.clip(jnp.round(values / step), -127, 127).astype(jnp.int8), scale, rows, dtype)
