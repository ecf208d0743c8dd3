"""DeLoRA: its strength bounds the update, whatever the directions are."""

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.peft.attach import attach
from peftjax.peft.delora import delora

W = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 10)), jnp.float32)


def trained(method, size: float):
    node = attach({"blocks": {"attn": {"q": {"kernel": W}}}}, [method], jax.random.key(0))["blocks"]["attn"]["q"]["kernel"]
    random = np.random.default_rng(1)
    a, b = (jnp.asarray(size * random.standard_normal(value.shape), jnp.float32) for value in (node.a, node.b))
    return type(node)(W, a, b, node.strength, node.lengths, node.scale, None, "default")


def test_the_norm_in_units_of_the_weights_rows_is_at_most_the_strength():
    for size in (0.01, 1.0, 100.0):
        node = trained(delora(rank=3, strength=2), size)
        assert (np.linalg.norm(np.asarray(node.delta()) / np.asarray(node.lengths)[..., None], axis=(1, 2)) <= 2 + 1e-5).all()
        np.testing.assert_allclose(node.delta(), trained(delora(rank=3, strength=2), 1.0).delta(), rtol=1e-4, atol=1e-5)


def test_of_rank_one_it_is_the_strength():
    node = trained(delora(rank=1, strength=2), 1.0)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(node.delta()) / np.asarray(node.lengths)[..., None], axis=(1, 2)), 2, rtol=1e-5)


def test_lengths_are_those_of_the_weights_rows_and_strengths_may_differ():
    node = trained(delora(rank=1, strength_pattern={"blocks/1/attn/q": 3}), 1.0)
    np.testing.assert_allclose(node.lengths, np.linalg.norm(W, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(node.strength, [15, 3])
