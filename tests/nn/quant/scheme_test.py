"""Quantising: the known errors and sizes on normal data, grids that come back exactly, and what does not fit is said."""

import dataclasses
import functools
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.nn.kernels import dense
from peftjax.nn.quant import NF4, Affine4, Float8, Int8, Scheme, quantise
from peftjax.nn.quant.nf4 import TABLE

NODES = {"affine4": Affine4, "int8": Int8, "nf4": NF4, "float8": Float8}
every_kind = pytest.mark.parametrize("kind", NODES)


def weight(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def normal():
    return weight(1024, 1024)


def bits(node) -> float:
    return 8 * sum(leaf.nbytes for leaf in jax.tree.leaves(node)) / np.prod(node.shape)


# Relative root mean square error on N(0, 1), 2^20 samples, and bits a weight.
ERRORS = [
    (Scheme("nf4"), 0.0920, 4.127),
    (Scheme("nf4", double=False), 0.0920, 4.5),
    (Scheme("nf4", block=128), 0.0956, 4.064),
    (Scheme("affine4"), 0.0782, 5.0),
    (Scheme("affine4", block=64), 0.0897, 4.5),
    (Scheme("affine4", block=128), 0.0999, 4.25),
    (Scheme("affine4", block=32, symmetric=True), 0.0970, 4.5),
    (Scheme("affine4", block=64, symmetric=True), 0.1076, 4.25),
    (Scheme("int8"), 0.0079, 8.03),
    (Scheme("int8", block=32), 0.0054, 8.5),
    (Scheme("float8"), 0.0264, 8.03),
]


@pytest.mark.parametrize(("scheme", "error", "size"), ERRORS, ids=str)
def test_the_error_and_the_size_on_normal_data(scheme, error, size):
    node = quantise(normal(), scheme)
    found = np.sqrt(np.mean((np.asarray(dense(node)) - normal()) ** 2) / np.mean(normal() ** 2))
    assert found == pytest.approx(error, rel=0.01)
    assert bits(node) == pytest.approx(size, rel=0.001)


def test_the_table_of_nf4_is_that_of_its_definition():
    """Quantiles of the normal distribution at 8 even steps above zero and 7 below, from one tail mass on, and zero; scaled to [-1, 1]."""
    quantiles = lambda steps: [NormalDist().inv_cdf(p) for p in np.linspace(0.9677083, 0.5, steps)[:-1]]  # noqa: E731
    values = np.array(sorted([*(-q for q in quantiles(8)), 0.0, *quantiles(9)]))
    np.testing.assert_allclose(TABLE, values / np.abs(values).max(), atol=2e-7)


@pytest.mark.parametrize("scheme", [s for s, *_ in ERRORS if s.kind != "nf4"], ids=str)
def test_a_weight_on_its_own_grid_comes_back(scheme):
    """Bit for bit where the constants are float16: then dividing the largest value by the steps it holds gives its scale again."""
    once = dense(quantise(weight(256, 6), scheme))
    np.testing.assert_allclose(dense(quantise(once, scheme)), once, rtol=1e-6 if scheme.block is None else 0)


def test_nf4_keeps_a_weight_on_its_grid_to_what_its_constants_lose():
    once = dense(quantise(weight(256, 6), "nf4", double=False))
    np.testing.assert_array_equal(dense(quantise(once, "nf4", double=False)), once)
    np.testing.assert_allclose(dense(quantise(once, "nf4")), once, rtol=0.01)


def test_double_quantisation_works_with_groups_that_n_does_not_fill():
    w = weight(128, 300)
    plain, double = dense(quantise(w, "nf4", double=False)), quantise(w, "nf4")
    assert double.scale.shape == (2, 2) and double.absmax.dtype == jnp.uint8
    assert np.mean((np.asarray(dense(double)) - w) ** 2) < 1.01 * np.mean((np.asarray(plain) - w) ** 2)


@every_kind
def test_zeros_stay_zeros(kind):
    w = weight(128, 4)
    w[:, 1] = 0
    w[:64, 2] = 0
    np.testing.assert_array_equal(np.asarray(dense(quantise(w, kind)))[:, 1], 0)
    np.testing.assert_array_equal(dense(quantise(np.zeros((64, 4), np.float32), kind)), 0)


@every_kind
def test_constant_blocks_are_kept(kind):
    np.testing.assert_allclose(dense(quantise(np.full((64, 3), -0.75, np.float32), kind)), -0.75, rtol=1e-3)


@every_kind
@pytest.mark.parametrize("rows", [False, True])
def test_layer_by_layer_is_the_whole_stack(kind, rows):
    w = weight(3, 64, 64)
    whole = quantise(w, kind, rows=rows)
    layers = [quantise(layer, kind, rows=rows) for layer in w]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    assert jax.tree.structure(whole) == jax.tree.structure(stacked) and whole.shape == w.shape
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(stacked), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(dense(whole), np.stack([dense(layer) for layer in layers]))


@every_kind
def test_an_embedding_is_the_transposed_linear_kernel(kind):
    w = weight(10, 64)
    embedding, linear = quantise(w, kind, rows=True), quantise(w.T, kind)
    assert isinstance(embedding, NODES[kind]) and embedding.shape == (10, 64) and linear.shape == (64, 10)
    np.testing.assert_array_equal(dense(embedding), dense(linear).T)


@every_kind
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_node_remembers_the_dtype_it_came_from(kind, dtype):
    node = quantise(jnp.asarray(weight(64, 4), dtype), kind)
    assert node.dtype == dense(node).dtype == dtype
    assert jax.tree.structure(node) == jax.tree.structure(dataclasses.replace(node, dtype=str(jnp.dtype(dtype))))  # one spelling


@every_kind
def test_abstract_weights_give_abstract_nodes(kind):
    made = quantise(weight(2, 64, 64), kind)
    abstract = jax.eval_shape(lambda w: quantise(w, kind), jax.ShapeDtypeStruct((2, 64, 64), jnp.float32))
    assert jax.tree.structure(abstract) == jax.tree.structure(made) and abstract.shape == made.shape
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(abstract)] == [(b.shape, b.dtype) for b in jax.tree.leaves(made)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quantise(weight(64, 4), "nf5"), r"called 'nf5' \(did you mean 'nf4'\?\); there are affine4, int8, nf4, float8"),
        (lambda: quantise(weight(576, 4), "affine4", block=128), r"blocks of 128 does not fit .*\(576, 4\): .* 576 values; .* 32, 64$"),
        (lambda: quantise(weight(60, 4), "nf4"), r"a column has 60 values; blocks that fit are none"),
        (lambda: quantise(weight(8, 48), "nf4", rows=True), r"a row has 48 values; blocks that fit are 8, 16, 24, 48"),
        (lambda: quantise(weight(64, 4), "affine4", block=4), r"blocks that fit are 32, 64"),
        (lambda: quantise(weight(64), "int8"), r"shape \(64,\) cannot be quantised"),
        (lambda: quantise(weight(64, 4), "float8", block=32), "float8 has one scale a channel"),
        (lambda: quantise(weight(64, 4), "int8", block=0), "block=0 is not positive"),
        (lambda: quantise(weight(64, 4), "nf4", symmetric=True), "symmetric is a choice of affine4"),
    ],
)
def test_what_cannot_be_quantised_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_are_no_weights():
    with pytest.raises(TypeError, match="dtype int32 cannot be quantised"):
        quantise(np.ones((64, 4), np.int32), "int8")
