"""Layers read arrays and nodes alike, and refuse a weight of another shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.nn.kernels import Tied
from peftjax.nn.layers import ACTIVATIONS, Embed, Head, Linear, RMSNorm, rms_norm
from peftjax.peft.lora import LoRA

X = jax.random.normal(jax.random.key(0), (2, 3, 4))
W = jax.random.normal(jax.random.key(1), (4, 6))
B = jax.random.normal(jax.random.key(2), (6,))
E = jax.random.normal(jax.random.key(3), (9, 4))


def test_linear_multiplies_and_adds_the_bias_that_the_tree_holds():
    module = Linear(6)
    np.testing.assert_allclose(module.apply({"params": {"kernel": W}}, X), X @ W, rtol=1e-5)
    want = np.asarray(X @ W) + np.asarray(B)
    np.testing.assert_allclose(module.apply({"params": {"kernel": W, "bias": B}}, X), want, rtol=1e-5, atol=1e-6)
    assert set(module.init(jax.random.key(0), X)["params"]) == {"kernel"}
    created = Linear(6, use_bias=True).init(jax.random.key(0), X)["params"]
    assert created["bias"].shape == (6,) and not created["bias"].any()


def test_linear_reads_a_node_where_a_weight_stood():
    node = LoRA(W, jnp.ones((2, 4)), jnp.ones((2, 6)), jnp.float32(0.5), None, "tone")
    got = Linear(6).apply({"params": {"kernel": node}}, X)
    np.testing.assert_allclose(got, X @ node.merge(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_a_weight_of_another_shape_is_refused_by_path(name):
    params = {"kernel": W, "bias": B} | {name: jnp.ones((4, 5) if name == "kernel" else (5,))}
    with pytest.raises(ValueError, match=rf"{name} has shape \((4, )?5,?\); the model asks for \((4, )?6,?\)"):
        Linear(6, use_bias=True).apply({"params": params}, X)


def test_a_node_of_another_shape_is_refused():
    node = LoRA(W.T, jnp.ones((2, 6)), jnp.ones((2, 4)), jnp.float32(1), None, "tone")
    with pytest.raises(ValueError, match=r"kernel has shape \(6, 4\); the model asks for \(4, 6\)"):
        Linear(6).apply({"params": {"kernel": node}}, X)


def test_rms_norm_has_unit_mean_square_and_ignores_the_size_of_its_input():
    y = rms_norm(X, jnp.ones(4), 1e-6)
    np.testing.assert_allclose(jnp.mean(jnp.square(y), axis=-1), np.ones((2, 3)), rtol=1e-4)
    np.testing.assert_allclose(rms_norm(100 * X, jnp.ones(4), 1e-6), y, rtol=1e-4)
    np.testing.assert_allclose(rms_norm(X, jnp.arange(4.0), 1e-6), y * jnp.tile(jnp.arange(4.0), (2, 3, 1)), rtol=1e-5)


def test_rms_norm_is_computed_in_float32_and_returned_in_the_dtype_of_the_value():
    half = X.astype(jnp.bfloat16)
    y = RMSNorm(1e-5).apply({"params": {"scale": jnp.ones(4)}}, half)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, rms_norm(half.astype(jnp.float32), jnp.ones(4), 1e-5).astype(jnp.bfloat16))


def test_a_norm_with_an_offset_keeps_what_is_beside_it():
    w = jnp.array([0.5, -0.25, 0.0, 2.0])
    found = RMSNorm(1e-6, offset=1.0).apply({"params": {"scale": w}}, X)
    np.testing.assert_allclose(found, rms_norm(X, 1 + w, 1e-6), rtol=1e-6)
    for offset in (0.0, 1.0):  # as a new norm does nothing but norm
        module = RMSNorm(1e-6, offset)
        new = module.init(jax.random.key(0), X)
        np.testing.assert_array_equal(new["params"]["scale"], np.full(4, 1 - offset))
        np.testing.assert_allclose(module.apply(new, X), rms_norm(X, jnp.ones(4), 1e-6), rtol=1e-6)


def test_embed_gives_rows_in_its_dtype_and_its_table():
    ids = jnp.array([[0, 8]])
    module = Embed(9, 4, jnp.bfloat16)
    np.testing.assert_array_equal(module.apply({"params": {"embedding": E}}, ids), E[ids].astype(jnp.bfloat16))
    assert module.apply({"params": {"embedding": E}}, method="table") is E
    with pytest.raises(ValueError, match=r"embedding has shape \(9, 4\); the model asks for \(8, 4\)"):
        Embed(8, 4).apply({"params": {"embedding": E}}, ids)


def test_a_tied_head_reads_the_embedding_until_the_tree_holds_a_kernel():
    head = Head(9, tied=True)
    np.testing.assert_allclose(head.apply({"params": {}}, X, E), X @ E.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(head.apply({"params": {"kernel": Tied(E)}}, X, E), head.apply({"params": {}}, X, E))
    np.testing.assert_allclose(head.apply({"params": {"kernel": 2 * E.T}}, X, E), 2 * X @ E.T, rtol=1e-5, atol=1e-5)
    assert not head.init(jax.random.key(0), X, E)
    assert Head(9, tied=False).init(jax.random.key(0), X, E)["params"]["kernel"].shape == (4, 9)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_keep_shape_and_are_what_they_are_called(name):
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    sigmoid = 1 / (1 + np.exp(-x))
    known = {
        "silu": x * sigmoid, "swish": x * sigmoid, "relu": np.maximum(x, 0), "leaky_relu": np.maximum(x, 0.01 * x),
        "tanh": np.tanh(x), "linear": x,
        "gelu": x * np.asarray(jax.scipy.stats.norm.cdf(x)),
        "gelu_tanh": x * 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    }  # fmt: skip
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), known[name], rtol=1e-4, atol=1e-5)
