"""4-bit NormalFloat kernels (QLoRA, 2305.14314, 2023): value = TABLE[q] · absmax, with double quantisation of absmax.

    before  blocks/attn/q/kernel = W [L, K, N]
    after   blocks/attn/q/kernel = NF4(words=uint32 [L, K/8, N], absmax=uint8 [L, G, N], scale=f32 [L, G, N/256], offset=f32 [L])

    absmax of a block = offset + scale[.., n // 256] · absmax[.., n]

with G = K/block, one scale for 256 blocks beside each other, one offset a weight. That is 4 + 8/64 + 32/(64·256) = 4.127 bits a weight
at block 64. Without double quantisation absmax is float32 and there is no scale and no offset: 4.5 bits. The paper quantises the constants
to 8-bit floats around their mean; they are of one size, so that integers above their minimum serve as well. TABLE holds quantiles of the
normal distribution, scaled to [-1, 1], with an exact zero (the paper's appendix E). Relative error on normal data at block 64: 0.0920.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.nn.kernels import node
from peftjax.nn.quant.quantised import Quantised, in_blocks, per_block
from peftjax.nn.quant.words import PER_WORD, pack, unpack

TABLE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
GROUP = 256  # constants that share a second-level scale


@node(arrays=("words", "absmax", "scale", "offset"), static=("rows", "dtype"))
@dataclasses.dataclass(frozen=True)
class NF4(Quantised):
    """The node. words: uint32 [K/8, N], see `peftjax.nn.quant.words`; absmax: uint8 [K/block, N], scale: float32 [K/block, ceil(N/256)],
    offset: float32 []; or absmax: float32 [K/block, N], scale and offset None."""

    words: jax.Array
    absmax: jax.Array
    scale: jax.Array | None = None
    offset: jax.Array | None = None
    rows: bool = False
    dtype: Any = jnp.dtype("float32")

    @property
    def stored(self):
        *lead, words, n = self.words.shape
        return (*lead, words * PER_WORD, n)

    def columns(self, pick):
        return NF4(pick(self.words), self._constants(pick), None, None, self.rows, self.dtype)

    def values(self):
        return lookup_table(unpack(self.words)) * per_block(self._constants(), self.stored[-2])

    def _constants(self, pick=lambda leaf: leaf):
        """The largest size in each block, float32 [.., G, N], of the columns that `pick` takes."""
        if self.scale is None:
            return pick(self.absmax)
        scale = jnp.take(self.scale, pick(jnp.arange(self.absmax.shape[-1]) // GROUP), axis=-1)
        return dequantised(pick(self.absmax), scale, self.offset)


def lookup_table(codes: jax.Array) -> jax.Array:
    """Codes int32 of 0 to 15 -> TABLE[codes], float32."""
    return jnp.take(jnp.asarray(TABLE, jnp.float32), codes, axis=0, mode="clip")


def to_nf4(values: jax.Array, block: int, double: bool, rows: bool, dtype) -> NF4:
    """Stored array float32 [.., K, N] -> node; `block` divides K and is a multiple of 8."""
    k, absmax = values.shape[-2], jnp.max(jnp.abs(in_blocks(values, block)), axis=-2)
    constants, stored = absmax, (absmax,)
    if double:
        codes, scale, offset = quantised(absmax)
        constants, stored = dequantised(codes, _spread(scale, absmax.shape[-1]), offset), (codes, scale, offset)
    shares = values / per_block(jnp.where(constants > 0, constants, 1), k)
    middles = (np.asarray(TABLE[1:]) + np.asarray(TABLE[:-1])) / 2
    return NF4(pack(sum((shares > middle).astype(jnp.uint32) for middle in middles)), *stored, rows=rows, dtype=dtype)


def quantised(absmax: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Constants float32 [.., G, N] -> (uint8 [.., G, N], scale [.., G, ceil(N/256)], offset [..])."""
    n = absmax.shape[-1]
    offset = jnp.min(absmax, axis=(-2, -1))
    above = absmax - jnp.broadcast_to(offset[..., None, None], absmax.shape)
    padded = jnp.pad(above, [(0, 0)] * (absmax.ndim - 1) + [(0, -n % GROUP)])
    scale = jnp.max(padded.reshape(*absmax.shape[:-1], -1, GROUP), axis=-1) / 255
    return jnp.round(above / _spread(jnp.where(scale > 0, scale, 1), n)).astype(jnp.uint8), scale, offset


def dequantised(codes: jax.Array, scale: jax.Array, offset: jax.Array) -> jax.Array:
    """Codes [.., G, N], their scales [.., G, N] and offset [..] -> constants float32 [.., G, N]."""
    return scale * codes.astype(jnp.float32) + jnp.broadcast_to(offset[..., None, None], codes.shape)


def _spread(scale, n):
    return jnp.repeat(scale, GROUP, axis=-1)[..., :n]
