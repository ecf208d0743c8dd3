"""A gated LoRA adds its change by a gate of each token, and has no weight to merge into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, base, logits, moved, train_batch

from peftjax.models.decoder import Decoder
from peftjax.nn.tree import flatten, get
from peftjax.peft.attach import attach
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.merge import merge
from peftjax.peft.partition import combine, partition
from peftjax.train.loss import token_losses

KEY = jax.random.key(0)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (6.0, 3.0)])
def test_it_is_its_formula(alpha, scale):
    params = moved(attach(base(), [gated_lora(rank=2, alpha=alpha)], KEY))
    node = jax.tree.map(lambda leaf: leaf[1], get(params, "blocks/attn/q/kernel"))
    x = np.asarray(jax.random.normal(KEY, (2, 3, 16)))
    gates = jax.nn.sigmoid(x @ np.asarray(node.gate) + np.asarray(node.gate_bias))
    want = x @ np.asarray(node.base) + np.asarray(gates)[..., None] * scale * (x @ np.asarray(node.a).T @ np.asarray(node.b))
    np.testing.assert_allclose(node.dot(x), want, rtol=1e-4, atol=1e-5)


def test_a_gate_of_the_row_is_the_mean_of_its_tokens():
    params = moved(attach(base(), [gated_lora(rank=2, gate="row")], KEY))
    node = jax.tree.map(lambda leaf: leaf[1], get(params, "blocks/attn/q/kernel"))
    x = np.asarray(jax.random.normal(KEY, (2, 3, 16)))
    gates = np.asarray(jax.nn.sigmoid(x @ np.asarray(node.gate) + np.asarray(node.gate_bias))).mean(axis=1)
    want = x @ np.asarray(node.base) + gates[:, None, None] * (x @ np.asarray(node.a).T @ np.asarray(node.b))
    np.testing.assert_allclose(node.dot(x), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="gated_lora gate 'rows' is none of token, row"):
        gated_lora(gate="rows")


def test_it_starts_on_the_base_with_gates_near_a_half():
    params = attach(base(), [gated_lora(rank=2)], KEY)
    np.testing.assert_array_equal(logits(params), logits(base()))
    node = get(params, "blocks/attn/v/kernel")
    assert node.gate.any() and np.abs(node.gate).max() < 0.1 and not node.gate_bias.any()


def test_it_cannot_be_merged():
    with pytest.raises(TypeError, match="blocks/attn/q/kernel: a gate depends on the token: a gated LoRA has no dense weight"):
        merge(attach(base(), [gated_lora(rank=2)], KEY))


def test_wrong_hyper_parameters_are_refused_when_stated():
    with pytest.raises(ValueError, match="gated_lora rank 0 is not positive"):
        gated_lora(rank=0)
    with pytest.raises(ValueError, match=r"gated_lora dropout 1 is not in \[0, 1\)"):
        gated_lora(dropout=1)


def test_gradients_reach_every_leaf():
    trainable, frozen = partition(moved(attach(base(), [gated_lora(rank=2)], KEY)))
    gradient = jax.jit(jax.grad(lambda t: jnp.sum(token_losses(Decoder(TINY), combine(t, frozen), train_batch())[0])))(trainable)
    for path, leaf in flatten(gradient).items():
        assert all(np.any(layer) for layer in leaf), path
