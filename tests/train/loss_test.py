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


@pytest.mark.parametrize("chunk", [2, 512])
@pytest.mark.parametrize("config", [TINY, TIED], ids=["untied", "tied"])
def test_a_frozen_head_changes_neither_values_nor_gradients(config, chunk, batch, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    weights = jnp.asarray([[1.0], [2.0], [0.0]])
    outer = {name: part for name, part in base(config).items() if name in loss_module.HEAD}

    def total(inner, frozen_head):
        losses, right = token_losses(Decoder(config), outer | inner, batch, frozen_head=frozen_head)
        return jnp.sum(losses * weights), right

    inner = {name: part for name, part in base(config).items() if name not in loss_module.HEAD}
    (want, right), grads = jax.value_and_grad(total, has_aux=True)(inner, False)
    (got, also), fast = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)(inner, True)
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    np.testing.assert_array_equal(right, also)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, fast)


def test_a_frozen_head_is_multiplied_by_twice_in_a_step_and_once_in_an_evaluation(batch):
    """Forward and back, no logits anew and no gradient of the head; without differentiation not even back."""
    outer = {name: part for name, part in base(TINY).items() if name in loss_module.HEAD}
    inner = {name: part for name, part in base(TINY).items() if name not in loss_module.HEAD}

    def total(inner, outer):
        return jnp.sum(token_losses(Decoder(TINY), outer | inner, batch, frozen_head=True)[0])

    def products(function):
        lines = [line for line in jax.jit(function).lower(inner, outer).as_text().splitlines() if "dot_general" in line]
        return sum(f"{TINY.width}x{TINY.vocab_size}xf32" in line for line in lines)

    assert products(total) == 1
    assert products(jax.grad(total)) == 2


def test_only_what_logits_are_read_from_keeps_a_head_from_being_frozen():
    one = jnp.ones(1)
    assert loss_module.head_is_frozen({"blocks": {"attn": one}, "head": {"kernel": None}, "embed": {}})
    assert not loss_module.head_is_frozen({"blocks": {}, "head": {"kernel": one}})
    assert not loss_module.head_is_frozen({"embed": {"embedding": one}})


def test_of_equal_logits_the_first_is_the_likeliest(batch):
    """As by argmax: a head of zeros gives every token the same logit, and token 0 is the guess."""
    params = base(TINY) | {"head": {"kernel": jnp.zeros_like(base(TINY)["head"]["kernel"])}}
    some = batch._replace(targets=jnp.asarray([[0, 1, 2], [0, 0, 5], [3, 0, 1]]))
    np.testing.assert_array_equal(token_losses(Decoder(TINY), params, some)[1], some.targets == 0)
