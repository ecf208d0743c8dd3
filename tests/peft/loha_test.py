"""LoHa: an elementwise product of two low-rank ones, whose rank may be the product of theirs."""

import jax.numpy as jnp
import numpy as np

from peftjax.peft.loha import LoHa


def test_the_update_is_the_product_and_its_factors_have_the_rank_squared():
    random = np.random.default_rng(0)
    weight, a1, b1, a2, b2 = (random.standard_normal(s).astype(np.float32) for s in ((24, 20), (2, 24), (2, 20), (2, 24), (2, 20)))
    node = LoHa(*map(jnp.asarray, (weight, a1, b1, a2, b2)), jnp.float32(0.5), None, "default")
    np.testing.assert_allclose(node.delta(), 0.5 * (a1.T @ b1) * (a2.T @ b2), rtol=1e-4, atol=1e-5)
    assert np.linalg.matrix_rank(np.asarray(node.delta())) == 4
    assert node.factors()[0].shape == (4, 24)
