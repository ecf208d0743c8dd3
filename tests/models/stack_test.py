"""Stacks of layers: how they are cut, and that a scanned stack is its layers one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from peftjax.models.stack import REMAT, scanned, segment_spans


class Layer(nn.Module):
    """x -> tanh(x W) + shift, with a shift of its own for each layer."""

    config: int
    remat: str

    @nn.compact
    def __call__(self, x, shift):
        return jnp.tanh(nn.Dense(self.config, use_bias=False)(x)) + shift, None


class Stack(nn.Module):
    """Three layers."""

    remat: str = "none"
    unroll: bool = False

    def setup(self):
        self.layers = scanned(Layer, 4, 3, in_axes=0, remat=self.remat, unroll=self.unroll)

    def __call__(self, x, shifts):
        return self.layers(x, shifts)[0]


X, SHIFTS = jax.random.normal(jax.random.key(0), (2, 4)), jnp.arange(3.0)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", REMAT)
def test_a_scanned_stack_is_its_layers_one_after_another(remat, unroll):
    model = Stack(remat, unroll)
    params = model.init(jax.random.key(1), X, SHIFTS)
    (kernel,) = jax.tree.leaves(params)
    assert kernel.shape == (3, 4, 4)
    expected = np.asarray(X)
    for layer in range(3):
        expected = np.tanh(expected @ np.asarray(kernel[layer])) + float(SHIFTS[layer])
    np.testing.assert_allclose(model.apply(params, X, SHIFTS), expected, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda p: jnp.sum(model.apply(p, X, SHIFTS)))(params)
    plain = jax.grad(lambda p: jnp.sum(Stack().apply(p, X, SHIFTS)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), slope, plain)


@pytest.mark.parametrize(("segments", "spans"), [((), ((0, 4),)), ((1, 3), ((0, 1), (1, 4))), ((2, 1, 1), ((0, 2), (2, 3), (3, 4)))])
def test_spans_follow_the_lengths(segments, spans):
    assert segment_spans(4, segments) == spans


@pytest.mark.parametrize("segments", [(1, 2), (5,), (4, 0), (-1, 5)])
def test_segments_must_add_up(segments):
    with pytest.raises(ValueError, match="do not add up to 4 layers"):
        segment_spans(4, segments)


def test_an_unknown_remat_is_refused():
    with pytest.raises(ValueError, match="remat is 'dot'; it may be none, dots, block"):
        scanned(Layer, 4, 3, in_axes=0, remat="dot")
