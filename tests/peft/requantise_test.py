"""Quantising again: what lies on the node's own grid comes back bit for bit, anything else at least as near as quantised afresh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.nn.quant import Affine4, Scheme, quantise
from peftjax.peft.requantise import requantise, scheme_of

SCHEMES = (
    Scheme("affine4"), Scheme("affine4", block=64), Scheme("affine4", symmetric=True), Scheme("nf4"), Scheme("nf4", block=32),
    Scheme("nf4", double=False), Scheme("int8"), Scheme("int8", block=32), Scheme("float8"),
)  # fmt: skip
K, N, LAYERS = 128, 12, 2


def weight(rows: bool = False, seed: int = 0) -> jax.Array:
    shape = (LAYERS, N, K) if rows else (LAYERS, K, N)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def name(scheme: Scheme) -> str:
    return " ".join(map(str, dataclasses.astuple(scheme)))


def same(one, other) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("rows", [False, True], ids=["linear", "rows"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
def test_a_weight_on_its_own_grid_comes_back_bit_for_bit(scheme, rows):
    node = quantise(weight(rows), scheme, rows=rows)
    same(requantise(node, node.merge()), node)


def test_the_values_of_ggufs_one_sided_grid_come_back_too():
    """Q4_0's q of 0, which is 8 steps below zero, and a negative step."""
    rng = np.random.default_rng(0)
    words = jnp.asarray(rng.integers(0, 2**32, (K // 8, N), np.uint32))
    node = Affine4(words, jnp.asarray(rng.standard_normal((K // 32, N)), jnp.float16))
    np.testing.assert_array_equal(requantise(node, node.merge()).merge(), node.merge())


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
def test_it_is_at_least_as_near_as_quantising_afresh(scheme):
    node, other = quantise(weight(), scheme), weight() + 0.3 * weight(seed=1)
    fresh, again = quantise(other, scheme), requantise(node, other)
    errors = [float(jnp.sum(jnp.square(candidate.merge() - other))) for candidate in (again, fresh)]
    assert 0 < errors[0] <= errors[1] * (1 + 1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
def test_a_far_weight_is_quantised_afresh(scheme):
    """Beyond the old grid's reach."""
    node, far = quantise(weight(), scheme), 100 * weight(seed=1)
    same(requantise(node, far), quantise(far, scheme))


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
def test_the_scheme_of_a_node_is_the_one_it_was_quantised_with(scheme):
    assert scheme_of(quantise(weight(), scheme)) == scheme


def test_each_layer_is_quantised_by_itself():
    node, other = quantise(weight(), "nf4"), weight(seed=1)
    for layer in range(LAYERS):
        alone = requantise(jax.tree.map(lambda leaf, i=layer: leaf[i], node), other[layer])
        same(alone, jax.tree.map(lambda leaf, i=layer: leaf[i], requantise(node, other)))
