"""Rotary positions, masks, the attention product and the key/value cache.

Scores are softmax(q k / sqrt(K)) over the keys that a token may see: same segment, not later, inside the window. Keys are cached after
rotation, so that a cached key never changes. Rotary positions in the half-split form of Hugging Face's Llama (2104.09864, 2021).
"""

import jax
import jax.numpy as jnp
from flax import struct

from peftjax.models.config import DecoderConfig


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far, in fixed slots.

    k, v: [L, B, S, G, K]; segments: [B, S] int, 0 where a slot is free or padding; used: int32 scalar, slots written so far.
    There is no guard on a full cache inside a compiled program: make it with a slot for every token that will come.
    """

    k: jax.Array
    v: jax.Array
    segments: jax.Array
    used: jax.Array


def empty_cache(config: DecoderConfig, batch: int, slots: int, dtype=jnp.float32) -> Cache:
    """A cache of `slots` free slots for `batch` rows."""
    shape = (config.layers, batch, slots, config.kv_heads, config.head_size)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, slots), jnp.int32), jnp.int32(0))


def rotary_angles(positions, head_size: int, base: float):
    """cos and sin of the rotary angles: positions [B, T] -> two [B, T, 1, K/2] float32."""
    frequency = base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x, angles):
    """Turns the pairs (j, j + K/2) of x [B, T, heads, K] by the angles of each position."""
    cos, sin = (jnp.broadcast_to(a, x.shape[:-1] + a.shape[-1:]).astype(x.dtype) for a in angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention_mask(query_segments, key_segments, slot, window: int | None):
    """Which key a query sees: segments [B, T] and [B, S] -> bool [B, 1, T, S].

    Queries stand in slots `slot` to `slot + T - 1`. Slots are in the order of time, so that "not later" and the window are differences
    of slots (within a segment slots and positions differ by a constant, as padding is never inside a segment).
    """
    length, slots = query_segments.shape[1], key_segments.shape[1]
    distance = (slot + jnp.arange(length))[:, None] - jnp.arange(slots)[None, :]
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return (same & near[None] & (key_segments > 0)[:, None, :])[:, None]


def attend_causally(q, k, v, mask):
    """q [B, T, H, K], k and v [B, S, G, K], mask [B, 1, T, S] -> [B, T, H, K]; softmax in float32.

    A query that sees nothing (padding) gets the mean of all values: finite, and read by nobody.
    """
    batch, length, heads, size = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, size) * (size**-0.5)
    scores = jnp.einsum("BTGHK,BSGK->BGHTS", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("BGHTS,BSGK->BTGHK", weights, v).reshape(batch, length, heads, size)
