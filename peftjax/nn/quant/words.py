"""Eight 4-bit codes in one uint32.

    words [K/8, N]:  bits 4j .. 4j+3 of words[g, n]  ==  codes[8 g + j, n]

The codes of a column lie in the same word, so that consecutive columns are lanes of one vector register. JAX's own int4 takes a whole byte
an element in memory on several backends, which would save nothing.
"""

import jax
import jax.numpy as jnp

PER_WORD = 8


def pack(codes: jax.Array) -> jax.Array:
    """Codes [..., K, N], integers of 0 to 15, K a multiple of 8 -> words uint32 [..., K/8, N]."""
    *lead, k, n = codes.shape
    lanes = codes.astype(jnp.uint32).reshape(*lead, k // PER_WORD, PER_WORD, n)
    lanes = lanes << _along_lanes(jnp.arange(0, 32, 4, dtype=jnp.uint32), lanes.shape)
    return jnp.sum(lanes, axis=-2, dtype=jnp.uint32)  # the nibbles do not overlap: their sum is their union


def unpack(words: jax.Array) -> jax.Array:
    """Words uint32 [..., K/8, N] -> codes int32 [..., K, N]. Signed, because vector units convert signed integers to floats."""
    # Behind the words: a scan moves what depends on nothing out of its body, and would keep the shifts of whole weights in memory.
    words, shifts = jax.lax.optimization_barrier((words, jnp.arange(0, 32, 4, dtype=jnp.uint32)))
    *lead, rows, n = words.shape
    lanes = jnp.broadcast_to(words[..., None, :], (*lead, rows, PER_WORD, n))
    codes = (lanes >> _along_lanes(shifts, lanes.shape)) & 15
    return codes.astype(jnp.int32).reshape(*lead, rows * PER_WORD, n)


def _along_lanes(shifts, shape):
    """[8] -> [.., 8, N]."""
    return jax.lax.broadcast_in_dim(shifts, shape, (len(shape) - 2,))
