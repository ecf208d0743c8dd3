"""FourierFT: which coefficients are trained, and the matrix that they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.peft.attach import attach
from peftjax.peft.fourierft import fourierft, shuffled

KEY = jax.random.key(0)


def node_of(method, *shape: int):
    return attach({"head": {"kernel": jnp.zeros(shape)}}, [method], KEY)["head"]["kernel"]


@pytest.mark.parametrize(
    ("size", "seed", "expected"), [(331776, 777, [96359, 187360, 48337, 166427, 31463]), (1000, 0, [44, 37, 675, 775, 947, 209])]
)  # torch 2.13
def test_positions_are_those_that_torch_draws(size, seed, expected):
    np.testing.assert_array_equal(shuffled(size, len(expected), seed), expected)


def test_all_positions_are_a_permutation():
    np.testing.assert_array_equal(np.sort(shuffled(50, 50, 3)), np.arange(50))
    large = shuffled(2**33, 99, 3)  # of 64 bits
    assert len(set(large.tolist())) == 99 and large.min() >= 0 and 2**32 < large.max() < 2**33


def test_the_delta_is_a_sum_of_waves():
    node = node_of(fourierft(frequencies=3, scale=7, init="normal", targets="head"), 5, 4)
    i, o = np.meshgrid(np.arange(5), np.arange(4), indexing="ij")
    waves = [
        float(c) * np.cos(2 * np.pi * (i * int(u) / 5 + o * int(v) / 4))
        for c, u, v in zip(node.spectrum, node.rows, node.columns, strict=True)
    ]
    np.testing.assert_allclose(node.delta(), 7 * sum(waves) / 20, rtol=1e-5, atol=1e-6)


def test_layers_of_one_shape_have_the_same_positions_counted_along_the_inputs_of_each_output():
    params = attach({"blocks": {"attn": {"q": {"kernel": jnp.zeros((2, 5, 4))}}}}, [fourierft(frequencies=6)], KEY)
    node = params["blocks"]["attn"]["q"]["kernel"]
    np.testing.assert_array_equal(node.columns * 5 + node.rows, np.stack([shuffled(20, 6, 777)] * 2))
    assert node.rows.dtype == jnp.int32 and not node.spectrum.any()
