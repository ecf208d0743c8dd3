"""Who sees whom, the attention product, and the key/value cache.

Scores are softmax(q k * scale) over the keys that a token may see: same segment, not later, inside the window. Keys are cached after
rotation, so that a cached key never changes. With a soft-cap c, scores are c tanh(scores / c) (Gemma 2, 2408.00118, 2024).

`attend` is what the models call on whole sequences; which form of the product computes it is chosen here, by backend:

| form | where | what it needs |
|---|---|---|
| blocks (`peftjax.models.attention_blocks`) | CPU, and wherever the others do not fit | nothing |
| cudnn flash (`peftjax.models.attention_fused`) | GPU | 16 bits, no soft-cap, no shared prefixes |
| splash (the same) | TPU | lengths of whole lanes, one static window, no shared prefixes |

`attend_causally` is the plain form with the scores whole in memory: what decoding with a cache uses, and what the others are tested
against.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from peftjax.models import attention_fused
from peftjax.models.attention_blocks import attend_blocks
from peftjax.models.config import DecoderConfig
from peftjax.models.sight import Sight


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far, in fixed slots.

    k, v: [L, B, G, S, K]; segments: [B, S] int, 0 where a slot is free or padding; used: int32 scalar, slots written so far.
    There is no guard on a full cache inside a compiled program: make it with a slot for every token that will come.
    """

    k: jax.Array
    v: jax.Array
    segments: jax.Array
    used: jax.Array


def empty_cache(config: DecoderConfig, batch: int, slots: int, dtype=jnp.float32) -> Cache:
    """A cache of `slots` free slots for `batch` rows."""
    shape = (config.layers, batch, config.kv_heads, slots, config.head_size)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, slots), jnp.int32), jnp.int32(0))


def attention_mask(query_segments, key_segments, slot, window: Any):
    """Which key a query sees: segments [B, T] and [B, S] -> bool [B, T, S].

    Queries stand in slots `slot` to `slot + T - 1`. Slots are in the order of time, so that "not later" and the window are differences
    of slots (within a segment slots and positions differ by a constant, as padding is never inside a segment).
    """
    length, slots = query_segments.shape[1], key_segments.shape[1]
    distance = (slot + jnp.arange(length))[:, None] - jnp.arange(slots)[None, :]
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return same & near[None] & (key_segments > 0)[:, None, :]


def attend(q, k, v, sight: Sight, *, scale: float | None = None, softcap: float | None = None):
    """Attention within whole sequences: q [B, T, H, K], k and v [B, T, G, K] -> [B, T, H, K]. `scale` is K^-0.5 unless given.

    A query that sees nothing (padding) gets finite values that nobody reads.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    backend = jax.default_backend()
    if backend == "gpu" and attention_fused.cudnn_fits(q, sight, softcap):
        return attention_fused.attend_cudnn(q, k, v, sight, scale)
    if backend == "tpu" and attention_fused.splash_fits(q, sight):
        return attention_fused.attend_splash(q, k, v, sight, scale, softcap)
    return attend_blocks(q, k, v, sight, scale=scale, softcap=softcap)


def attend_causally(q, k, v, mask, scale: float | None = None, softcap: float | None = None):
    """q [B, T, H, K], k and v [B, G, S, K], mask [B, T, S] -> [B, T, H, K]; softmax in float32. `scale` is K^-0.5 unless given.

    A query that sees nothing (padding) gets the mean of all values: finite, and read by nobody.
    """
    batch, length, heads, size = q.shape
    groups = k.shape[1]
    q = jnp.moveaxis(q.reshape(batch, length, groups, heads // groups, size), 1, 3) * (size**-0.5 if scale is None else scale)
    scores = jnp.einsum("BGRTK,BGSK->BGRTS", q, k, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.moveaxis(jnp.einsum("BGRTS,BGSK->BGRTK", weights, v), 3, 1).reshape(batch, length, heads, size)
