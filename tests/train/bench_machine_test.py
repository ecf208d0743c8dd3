"""The machine's rates are rates, and a copy does not become a no-op."""

import jax.numpy as jnp
import numpy as np

from peftjax.train.bench_machine import _copy_into, copy_rate, gemm_rate, read_rate


def test_rates_are_positive():
    assert gemm_rate(64, repeats=3) > 1e6
    assert read_rate(1 << 20, repeats=3) > 1e6
    assert copy_rate(1 << 20, repeats=3) > 1e6


def test_the_copy_lands_in_the_target_that_was_there():
    source, target = jnp.arange(1024.0), jnp.zeros(1024)
    place = target.unsafe_buffer_pointer()
    copied = _copy_into(source, target)
    assert copied.unsafe_buffer_pointer() == place
    np.testing.assert_array_equal(copied, source + 1)
