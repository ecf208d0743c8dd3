"""Eight codes a word: each in its place, and back as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from peftjax.nn.quant.words import pack, unpack


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, (2, 16, 3), elements=st.integers(0, 15)))
def test_codes_come_back_as_they_were(codes):
    packed = jax.jit(pack)(codes)
    assert packed.dtype == jnp.uint32 and packed.shape == (2, 2, 3)
    np.testing.assert_array_equal(jax.jit(unpack)(packed), codes)


def test_code_j_of_a_word_stands_in_bits_4j_to_4j_plus_3():
    codes = np.random.default_rng(0).integers(0, 16, (16, 3))
    words = np.asarray(pack(jnp.asarray(codes)))
    for k, n in np.ndindex(codes.shape):
        assert (int(words[k // 8, n]) >> 4 * (k % 8)) & 15 == codes[k, n]


def test_all_ones_keep_the_highest_bit():
    words = pack(jnp.full((8, 2), 15))
    np.testing.assert_array_equal(words, np.full((1, 2), 2**32 - 1, np.uint32))
    np.testing.assert_array_equal(unpack(words), np.full((8, 2), 15))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.uint8, jnp.int32])
def test_codes_may_be_of_any_dtype(dtype):
    codes = jnp.arange(16, dtype=dtype).reshape(16, 1)
    np.testing.assert_array_equal(unpack(pack(codes)), np.arange(16).reshape(16, 1))
