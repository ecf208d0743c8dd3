"""Attention by the accelerators' own kernels: cuDNN's flash attention on GPU, splash attention on TPU (both after 2307.08691, 2023).

Neither knows shared prefixes (`Sight.until`); where a kernel does not fit, `peftjax.models.attention` falls back on blocks. Keys and values
before the sequence (`peftjax.nn.context`) are further columns to cuDNN, unless they have gates; splash attention has no place for them.
"""

import functools

import jax
import jax.numpy as jnp

from peftjax.models.sight import Sight
from peftjax.nn.context import KeysValues

LANES = 128  # splash attention works on whole lanes of a TPU's vector unit


def cudnn_fits(q, sight: Sight, softcap: float | None, before: KeysValues | None = None) -> bool:
    """cuDNN: float16 or bfloat16, head sizes that are multiples of 8 up to 128, no soft-cap, no shared prefixes, no gates."""
    size = q.shape[-1]
    gated = before is not None and (before.key_gate is not None or before.value_gate is not None)
    fits = q.dtype in (jnp.float16, jnp.bfloat16) and size % 8 == 0 and size <= 128
    return fits and softcap is None and sight.until is None and not gated


def attend_cudnn(q, k, v, sight: Sight, scale: float, before: KeysValues | None = None, implementation: str = "cudnn"):
    """q [B, T, H, K], k and v [B, T, G, K] -> [B, T, H, K]."""
    mask = sight.mask(0, q.shape[1], q.shape[1])
    if before is not None:
        k, v, mask = with_columns(k, v, mask, before)
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=scale, implementation=implementation)


def with_columns(k, v, mask, before: KeysValues):
    """k and v [B, T, G, K] and mask [B, T, T] with P columns more before them."""
    shape = (k.shape[0], before.k.shape[-3], *k.shape[2:])
    seen = jnp.ones(shape[:2], bool) if before.seen is None else before.seen
    seen = jnp.broadcast_to(seen if seen.ndim == 3 else seen[:, None], (*mask.shape[:2], shape[1]))
    keys, values = (jnp.concatenate([jnp.broadcast_to(x, shape), y], axis=1) for x, y in ((before.k, k), (before.v, v)))
    return keys, values, jnp.concatenate([seen, mask], axis=-1)


def splash_fits(q, sight: Sight) -> bool:
    """Splash: lengths that are multiples of 128, a causal mask with no window or one known when compiling, no shared prefixes, no virtual
    tokens."""
    static = sight.window is None or isinstance(sight.window, int)
    return q.shape[1] % LANES == 0 and sight.until is None and sight.causal and static and not sight.first


def attend_splash(q, k, v, sight: Sight, scale: float, softcap: float | None = None, interpret: bool = False):
    """q [B, T, H, K], k and v [B, T, G, K] -> [B, T, H, K]. `interpret` runs the kernel's own steps on any backend, slowly."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = q.shape[1:3]
    shape = (length, length)
    one = masks.CausalMask(shape) if sight.window is None else masks.LocalMask(shape, (sight.window - 1, 0), 0)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([one] * heads), head_shards=1, q_seq_shards=1, attn_logits_soft_cap=softcap, interpret=interpret
    )
    repeat = functools.partial(jnp.repeat, repeats=heads // k.shape[2], axis=2)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * scale, repeat(k), repeat(v)))
    segments = splash.SegmentIds(sight.segments, sight.segments)
    return jnp.swapaxes(jax.vmap(kernel)(q, k, v, segments), 1, 2)
