"""Who sees whom, the attention product, and the key/value cache.

Scores are softmax(q k * scale) over the keys that a token may see: same segment, not later, inside the window. Keys are cached after
rotation, so that a cached key never changes. With a soft-cap c, scores are c tanh(scores / c) (Gemma 2, 2408.00118, 2024).

`attend` is what the models call on whole sequences; which form of the product computes it is chosen here, by backend:

| form | where | what it needs |
|---|---|---|
| blocks (`peftjax.models.attention_blocks`) | CPU, and wherever the others do not fit | nothing |
| cudnn flash (`peftjax.models.attention_fused`) | GPU | 16 bits, no soft-cap, no shared prefixes, no gates |
| splash (the same) | TPU | lengths of whole lanes, one static window, no shared prefixes, nothing before the sequence |

`attend_causally` is the plain form with the scores whole in memory: what decoding with a cache uses, and what the others are tested
against.

Keys and values before the sequence (`peftjax.nn.context`) join in exactly, as two softmaxes make one of all their keys:

    out = (sum_p exp(s_p) v_p + exp(lse) out_of_the_sequence) / (sum_p exp(s_p) + exp(lse))
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from peftjax.models import attention_fused
from peftjax.models.attention_blocks import attend_blocks, attend_with_sums
from peftjax.models.config import DecoderConfig
from peftjax.models.sight import Sight
from peftjax.nn.context import KeysValues
from peftjax.nn.wide import wide


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far, in fixed slots.

    k, v: [L, B, G, S, K]; segments: [B, S] int, 0 where a slot is free or padding; used: int32 scalar, slots written so far; first: how
    many of these hold virtual tokens (`Decoder.begin`), where `segments` is 1 in the rows that have them.
    There is no guard on a full cache inside a compiled program: make it with a slot for every token that will come.
    """

    k: jax.Array
    v: jax.Array
    segments: jax.Array
    used: jax.Array
    first: int = struct.field(pytree_node=False, default=0)


def empty_cache(config: DecoderConfig, batch: int, slots: int, dtype=jnp.float32) -> Cache:
    """A cache of `slots` free slots for `batch` rows."""
    shape = (config.layers, batch, config.kv_heads, slots, config.head_size)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch, slots), jnp.int32), jnp.int32(0))


@struct.dataclass
class CacheSight:
    """Who sees whom where keys are cached. segments, positions: int [B, T] of the queries; slots: int [B, S], the segments of the keys;
    slot: int scalar, where the first query stands; first: how many slots hold virtual tokens."""

    segments: jax.Array
    positions: jax.Array
    slots: jax.Array
    slot: jax.Array
    first: int = struct.field(pytree_node=False, default=0)

    def mask(self, window: Any) -> jax.Array:
        """bool [B, T, S]. Virtual tokens are seen whatever the segment; padding lies between them and a row's own tokens, so that a window
        reaches as far back to them as positions do."""
        seen = attention_mask(self.segments, self.slots, self.slot, window)
        if not self.first:
            return seen
        number, query = jnp.arange(self.slots.shape[1])[None, None], self.slot + jnp.arange(self.segments.shape[1])
        virtual = (self.slots > 0)[:, None] & (number <= query[None, :, None])
        if window is not None:
            place = jnp.cumsum(self.slots > 0, axis=1) - 1  # the position of a virtual token
            virtual = virtual & (self.positions[:, :, None] - place[:, None] < window)
        return jnp.where(number < self.first, virtual, seen)


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


def attend(
    q, k, v, sight: Sight, *, scale: float | None = None, softcap: float | None = None, before: KeysValues | None = None
):
    """Attention within whole sequences: q [B, T, H, K], k and v [B, T, G, K] -> [B, T, H, K]. `scale` is K^-0.5 unless given; `before` are
    keys and values before the sequence.

    A query that sees nothing (padding) gets finite values that nobody reads.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    backend = jax.default_backend()
    if backend == "gpu" and attention_fused.cudnn_fits(q, sight, softcap, before):
        return attention_fused.attend_cudnn(q, k, v, sight, scale, before)
    if before is not None:
        return _joined(q, before, *attend_with_sums(q, k, v, sight, scale=scale, softcap=softcap), scale, softcap)
    if backend == "tpu" and attention_fused.splash_fits(q, sight):
        return attention_fused.attend_splash(q, k, v, sight, scale, softcap)
    return attend_blocks(q, k, v, sight, scale=scale, softcap=softcap)


def attend_causally(
    q, k, v, mask, scale: float | None = None, softcap: float | None = None, before: KeysValues | None = None
):
    """q [B, T, H, K], k and v [B, G, S, K], mask [B, T, S] -> [B, T, H, K]; softmax in float32. `scale` and `before` are as of `attend`.

    A query that sees nothing (padding) gets the mean of all values: finite, and read by nobody.
    """
    batch, length, heads, size = q.shape
    groups, scale = k.shape[1], size**-0.5 if scale is None else scale
    queries = jnp.moveaxis(q.reshape(batch, length, groups, heads // groups, size), 1, 3) * scale
    scores = jnp.einsum("BGRTK,BGSK->BGRTS", queries, k, preferred_element_type=wide(q.dtype))
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    out = jnp.moveaxis(jnp.einsum("BGRTS,BGSK->BGRTK", weights, v), 3, 1).reshape(batch, length, heads, size)
    return out if before is None else _joined(q, before, out, jax.nn.logsumexp(scores, axis=-1), scale, softcap)


def _joined(q, before: KeysValues, out, lse, scale: float, softcap: float | None):
    """q [B, T, H, K] over the keys of a sequence, which gave `out` [B, T, H, K] and `lse` [B, G, R, T] float32, and over P keys before them
    -> [B, T, H, K]."""
    groups = lse.shape[1]
    queries, out = (x.reshape(*q.shape[:2], groups, -1, q.shape[-1]) for x in (q * scale, out))
    slots = "PGK" if before.k.ndim == 3 else "BPGK"
    scores = jnp.einsum(f"BTGRK,{slots}->BGRTP", queries, before.k, preferred_element_type=wide(q.dtype))
    if before.key_gate is not None:
        scores = scores * before.key_gate[:, None, None]
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if before.seen is not None:
        seen = before.seen if before.seen.ndim == 3 else before.seen[:, None]
        scores = jnp.where(seen[:, None, None], scores, jnp.finfo(scores.dtype).min)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1), lse))
    weights, rest = jnp.exp(scores - top[..., None]), jnp.exp(lse - top)
    total = jnp.sum(weights, axis=-1) + rest
    if before.value_gate is not None:
        weights = weights * before.value_gate[:, None, None]
    weights = (weights / total[..., None]).astype(q.dtype)
    taken = jnp.einsum(f"BGRTP,{slots}->BTGRK", weights, before.v, preferred_element_type=wide(q.dtype))
    rest = jnp.moveaxis(rest / total, 3, 1)[..., None]
    return (taken + rest * out).astype(q.dtype).reshape(q.shape)
