"""Thin products: the values and gradients of the plain products, in any dtype, and no wide operand transposed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.nn.thin import expand, shrink


def operands(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    x, a = jax.random.normal(keys[0], (3, 5, 8), dtype), jax.random.normal(keys[1], (2, 8))
    z, b = jax.random.normal(keys[2], (3, 5, 2), dtype), jax.random.normal(keys[3], (2, 7))
    return {"shrink": (shrink, x, a, lambda x, a: x @ a.T.astype(x.dtype)), "expand": (expand, z, b, lambda z, b: z @ b.astype(z.dtype))}


@pytest.mark.parametrize("name", ["shrink", "expand"])
def test_values_and_gradients_are_those_of_the_product(name):
    thin, x, w, plain = operands()[name]
    np.testing.assert_allclose(thin(x, w), plain(x, w), rtol=1e-5, atol=1e-6)
    loss = lambda f: lambda x, w: jnp.sum(jnp.sin(f(x, w)))  # noqa: E731
    for found, expected in zip(jax.grad(loss(thin), (0, 1))(x, w), jax.grad(loss(plain), (0, 1))(x, w), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["shrink", "expand"])
def test_gradients_keep_the_dtype_of_what_they_are_of(name):
    thin, x, w, _ = operands(jnp.bfloat16)[name]
    dx, dw = jax.grad(lambda x, w: jnp.sum(thin(x, w).astype(jnp.float32)), (0, 1))(x, w)
    assert (thin(x, w).dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("name", ["shrink", "expand"])
def test_mapped_over_adapters_is_each_alone(name):
    thin, x, w, _ = operands()[name]
    stacked = jnp.stack([w, 2 * w, -w])
    many = jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(thin(x, w)))), (0, None))(stacked, x)
    for one, member in zip(many, stacked, strict=True):
        np.testing.assert_allclose(one, jax.grad(lambda w: jnp.sum(jnp.sin(thin(x, w))))(member), rtol=1e-4, atol=1e-5)


def test_the_backward_pass_transposes_no_wide_operand():
    """In the traced gradient program the only transposed arrays have the rank as an axis."""
    thin, x, w, _ = operands()["expand"]
    jaxpr = jax.make_jaxpr(jax.grad(lambda w: jnp.sum(thin(x, w) ** 2)))(w).jaxpr
    transposed = [e.invars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == "transpose"]
    assert all(2 in shape for shape in transposed)
