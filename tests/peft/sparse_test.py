"""A matrix of few entries, formed and not."""

import jax.numpy as jnp
import numpy as np

from peftjax.peft.sparse import positions, scatter, times

FLAT = np.array([0, 6, 8, 13])
VALUES = jnp.array([1.0, -2.0, 3.0, 0.5])


def test_entries_stand_where_they_are_counted():
    rows, columns = positions(FLAT, 5)
    assert rows.dtype == columns.dtype == jnp.int32
    np.testing.assert_array_equal(scatter(VALUES, rows, columns, (3, 5)).reshape(-1)[FLAT], VALUES)
    assert (np.asarray(scatter(VALUES, rows, columns, (3, 5))) != 0).sum() == 4
    stack = scatter(jnp.stack([VALUES, 2 * VALUES]), jnp.stack([rows, rows]), jnp.stack([columns, columns]), (2, 3, 5))
    np.testing.assert_array_equal(stack[1], 2 * stack[0])


def test_products_without_the_matrix_are_products_with_it():
    entries = (VALUES, *positions(FLAT, 5))
    for leading in ((), (2,), (2, 4)):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((*leading, 3)), jnp.float32)
        np.testing.assert_allclose(times(x, *entries, 5), x @ scatter(*entries, (3, 5)), rtol=1e-6, atol=1e-6)
    assert times(x.astype(jnp.bfloat16), *entries, 5).dtype == jnp.bfloat16
