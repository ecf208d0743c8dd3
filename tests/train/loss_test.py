"""The loss: only where it is asked for, the same in chunks as whole, and equal to the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import TIED, TINY, base, train_batch

from peftjax.models.decoder import Decoder
from peftjax.train import loss as loss_module
from peftjax.train.loss import token_losses


@pytest.fixture
def batch():
    """Loss at some positions only, in any order the packer may choose."""
    whole = train_batch(3, 6)
    picked = jnp.asarray([[0, 2, 5], [1, 3, 4], [0, 1, 2]])
    return whole._replace(loss_positions=picked, targets=jnp.take_along_axis(whole.targets, picked, axis=1), weights=jnp.ones((3, 3)))


@pytest.mark.parametrize("config", [TINY, TIED], ids=["untied", "tied"])
def test_is_the_cross_entropy_of_the_next_token(config, batch):
    losses, right = token_losses(Decoder(config), base(config), batch)
    logits = Decoder(config).apply({"params": base(config)}, batch.tokens)
    logits = jnp.take_along_axis(logits, batch.loss_positions[..., None], axis=1)
    np.testing.assert_allclose(losses, optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets), rtol=2e-5)
    np.testing.assert_array_equal(right, jnp.argmax(logits, -1) == batch.targets)


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_change_neither_values_nor_gradients(chunk, batch, monkeypatch):
    def total(params):
        return jnp.sum(token_losses(Decoder(TINY), params, batch)[0] * jnp.asarray([[1.0], [2.0], [3.0]]))

    whole, whole_grads = jax.value_and_grad(total)(base(TINY))
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    parts, parts_grads = jax.value_and_grad(total)(base(TINY))
    assert float(parts) == pytest.approx(float(whole), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole_grads, parts_grads)


def test_the_program_in_chunks_holds_no_logits_of_all_positions(batch, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 3)
    text = jax.jit(lambda p: jax.grad(lambda q: jnp.sum(token_losses(Decoder(TINY), q, batch)[0]))(p)).lower(base(TINY)).as_text()
    assert f"3x1x{TINY.vocab_size}xf32" in text
    assert f"3x3x{TINY.vocab_size}xf32" not in text
