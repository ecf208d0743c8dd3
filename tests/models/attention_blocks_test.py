"""Attention in blocks is the plain product, and so are its derivatives: for every sight, in any block, with nothing of [T, T] kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models.attention import attend, attend_causally
from peftjax.models.attention_blocks import attend_blocks
from peftjax.models.sight import Sight
from peftjax.nn.context import KeysValues

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


@pytest.mark.slow  # a backward pass for each way to see: half a minute
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


def before(kind):
    """Three keys and values before the sequence: for all rows, or for each row, or for some rows and queries, with gates."""
    keys = jax.random.split(jax.random.key(7), 4)
    rows = () if kind == "for all" else (2,)
    k, v = (jax.random.normal(key, (*rows, 3, 2, 6)) for key in keys[:2])
    gates = (jax.nn.sigmoid(jax.random.normal(key, (2, 8, 3))) for key in keys[2:]) if kind == "with gates" else (None, None)
    seen = {
        "for some rows": jnp.array([[True, False, True], [False, False, False]]),
        "for some queries": jax.random.bernoulli(keys[2], 0.5, (2, 8, 3)),
    }
    return KeysValues(k, v, seen.get(kind), *gates)


def concatenated(q, k, v, sight, extra, scale, softcap):
    """The definition: one softmax over all keys."""
    k, v = (jnp.concatenate([jnp.broadcast_to(x, (2, 3, 2, 6)), y], axis=1) for x, y in ((extra.k, k), (extra.v, v)))
    k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
    seen = jnp.ones((2, 8, 3), bool) if extra.seen is None else extra.seen
    seen = jnp.concatenate([jnp.broadcast_to(seen if seen.ndim == 3 else seen[:, None], (2, 8, 3)), sight.mask(0, 8, 8)], axis=2)
    by_key, by_value = (
        jnp.ones((2, 8, 11)) if gate is None else jnp.concatenate([gate, jnp.ones((2, 8, 8))], axis=2)
        for gate in (extra.key_gate, extra.value_gate)
    )
    scores = jnp.einsum("BTHK,BSHK->BHTS", q, k) * scale * by_key[:, None]
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1) * by_value[:, None]
    return jnp.einsum("BHTS,BSHK->BTHK", weights, v)


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("kind", ["for all", "by row", "for some rows", "for some queries", "with gates"])
def test_keys_before_the_sequence_are_keys_of_the_same_softmax(kind, softcap):
    """In values and gradients, of whole sequences and over cached keys; however small the window."""
    *qkv, dout = inputs()
    sight, extra, how = SIGHTS["window"], before(kind), {"scale": 0.6, "softcap": softcap}
    forms = {
        "definition": lambda q, k, v, extra: concatenated(q, k, v, sight, extra, **how),
        "blocks": jax.jit(lambda q, k, v, extra: attend(q, k, v, sight, before=extra, **how)),
        "cached": jax.jit(lambda q, k, v, extra: plain(q, k, v, sight, before=extra, **how)),
    }
    floats = extra._replace(seen=None)
    results = {}
    for name, form in forms.items():
        out, back = jax.vjp(lambda q, k, v, floats, form=form: form(q, k, v, floats._replace(seen=extra.seen)), *qkv, floats)
        results[name] = (out, jax.tree.leaves(back(dout)))
    used = np.asarray(SEGMENTS > 0)
    want, slopes = results.pop("definition")
    for name, (got, mine) in results.items():
        np.testing.assert_allclose(np.asarray(got)[used], np.asarray(want)[used], atol=2e-6, err_msg=name)
        for one, other in zip(mine, slopes, strict=True):
            np.testing.assert_allclose(one, other, atol=5e-6, err_msg=name)
    assert len(slopes) == (7 if kind == "with gates" else 5)


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
