"""Masks are as defined, and attention is the plain sum that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY

from peftjax.models.attention import attend_causally, attention_mask, empty_cache


@pytest.mark.parametrize("window", [None, 1, 2])
@pytest.mark.parametrize("slot", [0, 2])
def test_the_mask_is_that_of_the_definition(window, slot):
    keys = jnp.array([[0, 1, 1, 2, 2, 0], [1, 1, 1, 1, 2, 3]])
    queries = keys[:, slot : slot + 3]
    got = attention_mask(queries, keys, slot, window)
    assert got.shape == (2, 3, 6)
    for b in range(2):
        for t in range(3):
            for s in range(6):
                near = s <= slot + t and (window is None or slot + t - s < window)
                assert got[b, t, s] == (near and queries[b, t] == keys[b, s] and keys[b, s] > 0), (b, t, s)


def plain_attention(q, k, v, mask, scale=None, softcap=None):
    """Head by head, query by query, in numpy."""
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        g = h // (q.shape[2] // k.shape[1])
        seen = mask[b, t]
        scores = k[b, g, seen] @ q[b, t, h] * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ v[b, g, seen] / weights.sum()
    return out


def test_attention_is_the_plain_sum_it_stands_for():
    keys = jax.random.split(jax.random.key(2), 3)
    q = jax.random.normal(keys[0], (2, 3, 4, 6))
    k, v = (jax.random.normal(key, (2, 2, 3, 6)) for key in keys[1:])
    segments = jnp.array([[1, 1, 1], [1, 2, 2]])
    mask = attention_mask(segments, segments, 0, None)
    for how in ({}, {"scale": 1.5}, {"softcap": 0.5}, {"scale": 3.0, "softcap": 2.0}):
        want = plain_attention(*(np.asarray(x) for x in (q, k, v, mask)), **how)
        np.testing.assert_allclose(attend_causally(q, k, v, mask, **how), want, rtol=1e-4, atol=1e-5)
        attend = jax.jit(attend_causally, static_argnames=("scale", "softcap"))
        np.testing.assert_allclose(attend(q, k, v, mask, **how), want, rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_is_finite_and_so_is_its_gradient():
    q = jnp.ones((1, 2, 2, 6))
    mask = jnp.zeros((1, 2, 2), bool)
    value, grads = jax.value_and_grad(lambda q: attend_causally(q, q, q, mask).sum())(q)
    assert jnp.isfinite(value) and jnp.isfinite(grads).all()


def test_an_empty_cache_has_a_slot_for_every_layer_row_and_token():
    cache = empty_cache(TINY, 3, 7, jnp.bfloat16)
    assert cache.k.shape == cache.v.shape == (TINY.layers, 3, TINY.kv_heads, 7, TINY.head_size)
    assert cache.k.dtype == jnp.bfloat16
    assert cache.segments.shape == (3, 7) and not cache.segments.any() and cache.used == 0
