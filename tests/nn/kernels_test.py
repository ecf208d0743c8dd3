"""Kernels are read through dot, lookup, attend and dense; a node says what it cannot do, never dense in silence."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.nn.kernels import Kernel, Tied, attend, dense, dot, is_kernel, lookup, node


@node(arrays=("base", "factor"), static=("name",))
@dataclasses.dataclass(frozen=True)
class Scaled(Kernel):
    """A kernel times a number: the smallest node there is."""

    base: Any
    factor: Any
    name: str

    @property
    def shape(self):
        return self.base.shape

    def dot(self, x, key=None):
        return dot(x, self.base, key) * self.factor


@node(arrays=("base",))
@dataclasses.dataclass(frozen=True)
class Bare(Kernel):
    """A node that can do nothing."""

    base: Any


W = jax.random.normal(jax.random.key(0), (4, 6))
X = jax.random.normal(jax.random.key(1), (2, 3, 4))


def test_reading_arrays():
    ids = jnp.array([[1, 3], [0, 0]])
    np.testing.assert_allclose(dot(X, W), np.asarray(X) @ np.asarray(W), rtol=1e-5)
    np.testing.assert_array_equal(lookup(ids, W, jnp.float32), np.asarray(W)[np.asarray(ids)])
    y = dot(X, W)
    np.testing.assert_allclose(attend(y, W), np.asarray(y) @ np.asarray(W).T, rtol=1e-5)
    assert dense(W) is W


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_are_computed_in_the_dtype_of_the_value(dtype):
    assert dot(X.astype(dtype), W).dtype == dtype
    assert attend(dot(X, W).astype(dtype), W).dtype == dtype
    assert lookup(jnp.array([1]), W, dtype).dtype == dtype


def test_a_node_is_read_by_its_own_rule_under_jit_and_plain():
    kernel = Scaled(W, jnp.float32(3), "tone")
    np.testing.assert_allclose(dot(X, kernel), 3 * dot(X, W), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(dot)(X, kernel), 3 * dot(X, W), rtol=1e-6)


def test_nodes_nest():
    kernel = Scaled(Scaled(W, jnp.float32(3), "tone"), jnp.float32(2), "task")
    np.testing.assert_allclose(dot(X, kernel), 6 * dot(X, W), rtol=1e-6)


def test_a_node_never_turns_into_an_array_in_silence():
    with pytest.raises(TypeError):
        jnp.asarray(Scaled(W, jnp.float32(3), "tone"))
    with pytest.raises(TypeError):
        X @ Scaled(W, jnp.float32(3), "tone")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda k: k.shape, "does not say its shape"),
        (lambda k: k.dtype, "does not say its dtype"),
        (lambda k: dot(X, k), "cannot be multiplied by"),
        (lambda k: lookup(jnp.array([0]), k, jnp.float32), "cannot stand in an embedding"),
        (lambda k: attend(X, k), "cannot stand in a tied head"),
        (dense, "cannot be merged into a dense weight"),
    ],
)
def test_what_a_node_cannot_do_names_the_node(ask, message):
    with pytest.raises(TypeError, match=f"Bare {message}"):
        ask(Bare(W))


def test_static_fields_are_part_of_the_structure_and_arrays_are_leaves():
    kernel = Scaled(W, jnp.float32(3), "tone")
    leaves, structure = jax.tree.flatten(kernel)
    assert len(leaves) == 2
    assert structure == jax.tree.structure(Scaled(X, 1.0, "tone"))
    assert structure != jax.tree.structure(Scaled(W, jnp.float32(3), "task"))
    again = jax.tree.unflatten(structure, leaves)
    assert again.name == "tone" and again.base is W


def test_registration_wants_every_field_named():
    with pytest.raises(TypeError, match=r"Half: fields \['base', 'name'\] are not arrays \('base',\)"):

        @node(arrays=("base",))
        @dataclasses.dataclass(frozen=True)
        class Half:
            base: Any
            name: str


def test_a_tied_head_is_the_transposed_embedding():
    tied = Tied(W)
    assert tied.shape == (6, 4) and tied.dtype == W.dtype
    y = dot(X, W)
    np.testing.assert_array_equal(dot(y, tied), attend(y, W))
    np.testing.assert_array_equal(dense(tied), W.T)
    assert jax.tree.leaves(tied)[0] is W


def test_is_kernel_knows_nodes_from_arrays():
    assert is_kernel(Tied(W)) and not is_kernel(W) and not is_kernel({"kernel": Tied(W)})
