"""The form of a product is chosen by backend and rows, and does not change what comes out."""

import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.nn.kernels import attend, dense
from peftjax.nn.quant import native, pallas, quantise
from peftjax.nn.quant.choose import ROWS, SWITCH, fused
from peftjax.nn.quant.product import plain_product, product

W = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)


def rows(count):
    return jnp.asarray(np.random.default_rng(1).standard_normal((count, 64)), jnp.float32)


def test_few_rows_are_fused_and_many_are_not():
    node = quantise(W, "affine4")
    if not native.available():
        pytest.skip("the loops cannot run on this machine")
    assert fused(native.ROWS, node) is native.matvec
    assert fused(native.ROWS + 1, node) is None
    assert fused(1, quantise(W, "float8")) is None  # there is no loop for it


def test_the_plain_form_can_be_asked_for(monkeypatch):
    monkeypatch.setenv(native.SWITCH, "0")
    assert fused(1, quantise(W, "affine4")) is None


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_programs_of_other_backends_are_taken_when_asked_for(backend, monkeypatch):
    node, wide = quantise(W, "nf4"), quantise(W[:, :33], "int8")
    assert fused(1, node, backend) is None
    monkeypatch.setenv(SWITCH, "1")
    chosen = fused(1, node, backend)
    assert (chosen.func, chosen.keywords) == (pallas.matmul, {"platform": backend})
    assert fused(ROWS + 1, node, backend) is None
    assert backend != "gpu" or fused(1, wide, backend) is None  # no power of two divides 33 columns
    np.testing.assert_allclose(chosen(rows(3), node, interpret=True), plain_product(rows(3), node), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["affine4", "int8", "nf4", "float8"])
@pytest.mark.parametrize("count", [1, 3, native.ROWS, native.ROWS + 1])
def test_either_form_gives_the_same(kind, count):
    node, x = quantise(W, kind), rows(count)
    np.testing.assert_allclose(product(x, node), plain_product(x, node), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(product(x, node), x @ dense(node), rtol=1e-5, atol=1e-5)
    tied = quantise(W.T, kind, rows=True)
    np.testing.assert_allclose(attend(x, tied), x @ dense(tied).T, rtol=1e-5, atol=1e-5)


def test_leading_axes_are_rows():
    node, x = quantise(W, "int8"), rows(6).reshape(2, 1, 3, 64)
    np.testing.assert_allclose(product(x, node), x @ dense(node), rtol=1e-5, atol=1e-5)
