"""Dropout: nothing without a key or a rate; with one, a function of key and name that keeps the mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, base, moved, run, tokens

from peftjax.models.decoder import Decoder
from peftjax.nn.tree import put
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import houlsby, pfeiffer
from peftjax.peft.dropout import drop
from peftjax.peft.lora import lora

X = jnp.ones((200, 50))
KEY = jax.random.key(0)


def test_without_a_key_or_a_rate_nothing_is_done():
    assert drop(X, None, KEY, "tone") is X
    assert drop(X, jnp.float32(0.5), None, "tone") is X
    np.testing.assert_array_equal(drop(X, jnp.float32(0), KEY, "tone"), X)


def test_elements_are_zero_or_enlarged_and_the_mean_is_kept():
    y = np.asarray(drop(X, jnp.float32(0.25), KEY, "tone"))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02 and abs(y.mean() - 1) < 0.02


def test_masks_are_a_function_of_key_and_name():
    first = drop(X, jnp.float32(0.5), KEY, "tone")
    np.testing.assert_array_equal(drop(X, jnp.float32(0.5), KEY, "tone"), first)
    for other in (drop(X, jnp.float32(0.5), KEY, "task"), drop(X, jnp.float32(0.5), jax.random.key(1), "tone")):
        assert abs((np.asarray(other) == np.asarray(first)).mean() - 0.5) < 0.03


def test_the_dtype_is_kept():
    assert drop(X.astype(jnp.bfloat16), jnp.float32(0.5), KEY, "tone").dtype == jnp.bfloat16


def test_members_of_a_population_may_differ_in_their_rate():
    y = jax.vmap(lambda rate: drop(X, rate, KEY, "tone"))(jnp.array([0.0, 0.5, 0.9]))
    np.testing.assert_allclose(np.mean(np.asarray(y) == 0, axis=(1, 2)), [0, 0.5, 0.9], atol=0.02)


@pytest.mark.parametrize("method", [lora(rank=2, dropout=0.5), houlsby(size=3, dropout=0.5)], ids=["lora", "houlsby"])
def test_a_model_drops_when_it_is_given_a_key_and_not_otherwise(method):
    params, ids, model = moved(attach(base(), [method], KEY)), tokens(), Decoder(TINY)
    first = run(params, ids, model, jax.random.key(1))
    np.testing.assert_array_equal(run(params, ids, model, jax.random.key(1)), first)
    assert np.abs(run(params, ids, model, jax.random.key(2)) - first).max() > 1e-3
    assert np.abs(run(params, ids, model) - first).max() > 1e-3
    still = attach(base(), [method], KEY)
    np.testing.assert_allclose(run(still, ids, model, jax.random.key(1)), run(base(), ids, model), rtol=1e-5, atol=1e-5)


def test_layers_rows_and_positions_drop_independently():
    """Over a base of zeros hidden states are the sum of two layers' masks (0, 1 or 2), up to the final norm's scale."""
    params = attach(jax.tree.map(jnp.zeros_like, base()), [pfeiffer(size=1, dropout=0.5)], KEY)
    entry = params["blocks"]["mlp_out"]["default"]
    params = put(params, "blocks/mlp_out/default", dataclasses.replace(entry, up_bias=jnp.ones((2, 16))))
    params = put(params, "final_norm/scale", jnp.ones(16))
    ids, model = jnp.zeros((4, 6), jnp.int32), Decoder(TINY)
    hidden = model.apply({"params": params}, ids, rngs={"dropout": KEY}, method="hidden")[0]
    masks = np.round(hidden / np.max(hidden, axis=-1, keepdims=True), 3)
    np.testing.assert_allclose([(masks == share).mean() for share in (0, 0.5, 1)], [0.25, 0.5, 0.25], atol=0.1)
    assert len(np.unique(masks.reshape(-1, 16), axis=0)) == 24
