"""Block-diagonal products, and the two ways to an orthogonal matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from peftjax.peft.blocks import cayley, in_blocks, orthonormal

KEY = jax.random.key(0)


def test_a_product_in_blocks_is_that_of_the_block_diagonal_matrix():
    blocks, x = jax.random.normal(KEY, (3, 4, 4)), jax.random.normal(jax.random.key(1), (2, 5, 12))
    np.testing.assert_allclose(in_blocks(x, blocks), x @ scipy.linalg.block_diag(*blocks), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(in_blocks(x, blocks[:1]), x @ scipy.linalg.block_diag(*[blocks[0]] * 3), rtol=1e-4, atol=1e-5)
    assert in_blocks(x.astype(jnp.bfloat16), blocks).dtype == jnp.bfloat16


def test_cayley_is_orthogonal_and_has_its_sign():
    free = jax.random.normal(KEY, (3, 5, 5))
    q = np.asarray(free - jnp.swapaxes(free, -1, -2))
    turned = np.asarray(cayley(q))
    np.testing.assert_allclose(turned @ turned.swapaxes(-1, -2), np.broadcast_to(np.eye(5), (3, 5, 5)), atol=1e-5)
    np.testing.assert_allclose(turned[1], (np.eye(5) - q[1]) @ np.linalg.inv(np.eye(5) + q[1]), atol=1e-5)
    np.testing.assert_array_equal(cayley(jnp.zeros((1, 3, 3)))[0], np.eye(3))


def test_orthonormal_rows_are_those_of_gram_schmidt():
    rows = jax.random.normal(KEY, (4, 9))
    made = np.asarray(orthonormal(rows))
    np.testing.assert_allclose(made @ made.T, np.eye(4), atol=1e-5)
    q, r = np.linalg.qr(np.asarray(rows).T)
    np.testing.assert_allclose(made, (q * np.sign(np.diag(r))).T, atol=1e-5)
    np.testing.assert_allclose(orthonormal(made), made, atol=1e-6)
