"""Attention in blocks is the plain product, and so are its derivatives: for every sight, in any block, with nothing of [T, T] kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models.attention import attend, attend_causally
from peftjax.models.attention_blocks import attend_blocks
from peftjax.models.sight import Sight

SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
GRID = jnp.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 6, 7]])
# Two runs behind a prefix of three tokens, and one line without a prefix.
UNTIL = jnp.array([[7, 7, 7, 5, 5, 7, 7, 0], [8, 8, 8, 8, 8, 8, 8, 8]])
SHARED = jnp.array([[0, 1, 2, 3, 4, 3, 4, 0], [0, 1, 2, 3, 4, 5, 6, 7]])
SIGHTS = {
    "causal": Sight(SEGMENTS, GRID),
    "both ways": Sight(SEGMENTS, GRID, causal=False),
    "window": Sight(SEGMENTS, GRID, window=2),
    "traced window": Sight(SEGMENTS, GRID, window=jnp.int32(3)),
    "shared prefix": Sight((SEGMENTS > 0).astype(jnp.int32), SHARED, UNTIL),
    "shared prefix and window": Sight((SEGMENTS > 0).astype(jnp.int32), SHARED, UNTIL, 4),
}


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    q, dout = (jax.random.normal(key, (2, 8, 4, 6), dtype) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 8, 2, 6), dtype) for key in keys[2:])
    return q, k, v, jnp.where(SEGMENTS[:, :, None, None] > 0, dout, 0).astype(dtype)  # nobody reads padding


def plain(q, k, v, sight, **how):
    return attend_causally(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), sight.mask(0, 8, 8), **how)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("name", SIGHTS)
def test_values_and_gradients_are_those_of_the_plain_product(name, block, softcap):
    *qkv, dout = inputs()
    how = {"scale": 0.6, "softcap": softcap}
    want, back = jax.vjp(lambda *x: plain(*x, SIGHTS[name], **how), *qkv)
    got, back_blocks = jax.vjp(jax.jit(lambda *x: attend_blocks(*x, SIGHTS[name], block=block, **how)), *qkv)
    used = np.asarray(SEGMENTS > 0)
    np.testing.assert_allclose(np.asarray(got)[used], np.asarray(want)[used], atol=2e-6)
    for mine, theirs in zip(back_blocks(dout), back(dout), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-6)


def test_bfloat16_stays_bfloat16_and_near():
    *qkv, dout = inputs(jnp.bfloat16)
    got, back = jax.vjp(lambda *x: attend_blocks(*x, SIGHTS["causal"], scale=0.4, block=3), *qkv)
    want = plain(*(x.astype(jnp.float32) for x in qkv), SIGHTS["causal"], scale=0.4)
    assert got.dtype == jnp.bfloat16 and {g.dtype for g in back(dout)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(got[1].astype(jnp.float32), want[1], atol=0.05)


def test_padding_is_finite_in_both_directions():
    q, k, v, _ = inputs()
    nothing = Sight(jnp.zeros((2, 8), jnp.int32), GRID)
    value, grads = jax.value_and_grad(lambda *x: attend(*x, nothing).sum(), argnums=(0, 1, 2))(q, k, v)
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in grads)


def test_scores_are_never_whole_nor_kept():
    long, block = 64, 16
    shape = (1, long, 2, 4)
    q = k = v = jax.random.normal(jax.random.key(1), shape)
    sight = Sight(jnp.ones((1, long), jnp.int32), jnp.arange(long)[None])
    _, back = jax.vjp(lambda *x: attend_blocks(*x, sight, scale=1.0, block=block), q, k, v)
    assert max(leaf.size for leaf in jax.tree.leaves(back)) == q.size  # what the backward pass is given
    text = jax.jit(jax.grad(lambda *x: attend_blocks(*x, sight, scale=1.0, block=block).sum())).lower(q, k, v).as_text()
    assert f"x{block}x{long}xf32" in text and f"x{long}x{long}xf32" not in text
    assert f"x{block}x{block}xf32" in text  # the first block reads the first keys alone
