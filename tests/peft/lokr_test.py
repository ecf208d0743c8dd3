"""LoKr: the sizes of its factors, and the Kronecker product that they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.peft.attach import attach
from peftjax.peft.lokr import lokr, split


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        (576, -1, (24, 24)), (1536, -1, (32, 48)), (192, -1, (12, 16)), (127, -1, (1, 127)), (128, 4, (4, 32)), (1536, 8, (8, 192)),
        (12, 6, (6, 2)), (12, 5, (3, 4)), (7, 3, (1, 7)), (30, 4, (3, 10)),
    ],
)  # fmt: skip
def test_a_side_is_split_as_peft_does(size, factor, expected):
    assert split(size, factor) == expected


@pytest.mark.parametrize("decompose_both", [False, True])
def test_the_delta_is_the_kronecker_product_of_both_factors(decompose_both):
    weight = jnp.zeros((12, 30))
    method = lokr(rank=1, alpha=3, decompose_both=decompose_both, targets="head")
    node = attach({"head": {"kernel": weight}}, [method], jax.random.key(0))["head"]["kernel"]
    assert (node.w1 is None) == decompose_both and node.w2 is None and node.scale == 3
    random = np.random.default_rng(0)
    node = jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), jnp.float32), node)
    one = np.asarray(node.a1).T @ np.asarray(node.b1) if decompose_both else np.asarray(node.w1)
    two = np.asarray(node.a2).T @ np.asarray(node.b2)
    assert one.shape == (3, 5) and two.shape == (4, 6)
    np.testing.assert_allclose(node.delta(), float(node.scale) * np.kron(one, two), rtol=1e-4, atol=1e-5)
