"""Products with quantised kernels are products with the dense weight they stand for, and gradients pass them by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.nn.kernels import Tied, attend, dense, dot, lookup
from peftjax.nn.quant import native, quantise
from peftjax.nn.quant.product import SLICE, WIDE

KINDS = ["affine4", "int8", "nf4", "float8"]
every_kind = pytest.mark.parametrize("kind", KINDS)
K, N = 64, 24


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """The form of products that dequantises; what else may be chosen is tested beside it (`choose_test`)."""
    monkeypatch.setenv(native.SWITCH, "0")


def values(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@functools.cache
def linear(kind):
    return quantise(values(K, N, seed=1), kind)


@functools.cache
def embedding(kind):
    return quantise(values(N, K, seed=1), kind, rows=True)


def through(function, x, node):
    """(value, gradient of x)."""
    value = function(x, node)
    return value, jax.grad(lambda x: jnp.sum(jnp.sin(function(x, node).astype(jnp.float32))))(x)


READS = {
    "a linear kernel": (dot, linear, K, lambda x, w: x @ w),
    "a linear kernel transposed": (attend, linear, N, lambda x, w: x @ w.T),
    "a tied head": (attend, embedding, K, lambda x, w: x @ w.T),
    "a tied head wrapped": (lambda x, node: dot(x, Tied(node)), embedding, K, lambda x, w: x @ w.T),
    "an embedding": (dot, embedding, N, lambda x, w: x @ w),
}


@every_kind
@pytest.mark.parametrize("read", READS)
def test_values_and_gradients_are_those_of_the_dense_weight(kind, read):
    function, make, width, plain = READS[read]
    node, x = make(kind), values(2, 3, width)
    for found, expected in zip(through(function, x, node), through(plain, x, dense(node)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert found.dtype == jnp.float32


@every_kind
def test_products_are_computed_in_the_dtype_of_the_value(kind):
    x, node = values(3, K).astype(jnp.bfloat16), linear(kind)
    y, dx = through(dot, x, node)
    assert y.dtype == dx.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, x @ dense(node).astype(jnp.bfloat16))
    assert attend(x, embedding(kind)).dtype == jnp.bfloat16 and lookup(jnp.array([1]), embedding(kind), jnp.bfloat16).dtype == jnp.bfloat16


@every_kind
def test_rows_are_looked_up_and_padding_is_not_a_number(kind):
    ids, node = jnp.array([[3, 0, N - 1], [3, 7, 7]]), embedding(kind)
    np.testing.assert_allclose(lookup(ids, node, jnp.float32), np.asarray(dense(node))[np.asarray(ids)], rtol=1e-6)
    assert np.isnan(lookup(jnp.array([N]), node, jnp.float32)).all()


def test_a_linear_kernel_says_that_it_is_no_embedding():
    with pytest.raises(TypeError, match=r"NF4 of shape \(64, 24\) was quantised as a linear kernel; an embedding needs rows=True"):
        lookup(jnp.array([1]), linear("nf4"), jnp.float32)


@every_kind
def test_no_gradient_flows_into_the_node(kind):
    """Not even into its floating leaves, whatever reads it."""
    x, ids = values(3, K), jnp.array([1, 2])
    read = lambda node: jnp.sum(attend(x, node)) + jnp.sum(lookup(ids, node, jnp.float32)) + jnp.sum(dense(node))  # noqa: E731
    for leaf in jax.tree.leaves(jax.grad(read, allow_int=True)(embedding(kind))):
        assert leaf.dtype == jax.dtypes.float0 or not np.any(leaf)


@every_kind
def test_the_node_is_all_that_is_kept_for_the_backward_pass(kind):
    node = linear(kind)
    kept = jax.tree.leaves(jax.vjp(lambda x: dot(x, node), values(5, K))[1])
    assert sum(leaf.nbytes for leaf in kept) == sum(leaf.nbytes for leaf in jax.tree.leaves(node))


@every_kind
@pytest.mark.parametrize("rest", [0, 100])
def test_a_wide_head_in_slices_is_the_whole(kind, rest):
    vocabulary = WIDE + SLICE + rest
    node = quantise(values(vocabulary, 8, seed=2), kind, rows=True, **({"block": 8} if kind in ("affine4", "nf4") else {}))
    x, dy = values(3, 8), values(3, vocabulary, seed=3)
    head = jax.jit(lambda x: attend(x, node))
    np.testing.assert_allclose(head(x), x @ dense(node).T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.jit(jax.vjp(head, x)[1])(dy)[0], dy @ dense(node), rtol=1e-4, atol=1e-3)


def test_a_wide_head_is_never_dense_there_or_back():
    vocabulary, width, rows = 4 * WIDE, 64, 2
    node = jax.eval_shape(lambda w: quantise(w, "nf4", rows=True), jax.ShapeDtypeStruct((vocabulary, width), jnp.float32))
    both = jax.jit(jax.value_and_grad(lambda x, node: jnp.sum(jnp.sin(attend(x, node)))))
    temporary = both.lower(jax.ShapeDtypeStruct((rows, width), jnp.float32), node).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * vocabulary * width / 2


@every_kind
def test_a_population_multiplies_by_one_weight(kind):
    """Mapped over members with the node unmapped, the weight is dequantised once."""
    x, node = values(3, 2, K), linear(kind)
    mapped = jax.vmap(jax.grad(lambda x, node: jnp.sum(jnp.sin(dot(x, node)))), (0, None))
    np.testing.assert_allclose(mapped(x, node), through(dot, x, node)[1], rtol=1e-5, atol=1e-6)
    assert "f32[3,64,24]" not in str(jax.make_jaxpr(mapped)(x, node))
