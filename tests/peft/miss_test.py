"""MiSS: blocks of inputs share one matrix, also where the last block is not whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.peft.miss import MiSS, MiSSBat

RANDOM = np.random.default_rng(0)


def random(*shape: int) -> jax.Array:
    return jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("rank", [4, 5, 12])
@pytest.mark.parametrize("own", [6, 2], ids=["default", "mini"])
def test_each_block_of_inputs_goes_through_the_same_matrix(rank, own):
    node, x = MiSS(random(12, 6), random(rank, own), None, "default"), random(3, 12)
    wide = np.concatenate([node.block] * (6 // own), axis=1)
    blocks = [np.asarray(x[:, start : start + rank]) for start in range(0, 12, rank)]
    wanted = sum(block @ wide[: block.shape[1]] for block in blocks)
    np.testing.assert_allclose(node.change(x), wanted, rtol=1e-5, atol=1e-5)


def test_bat_goes_through_the_weight_too_block_by_block():
    node = MiSSBat(random(4, 6), random(3, 2, 2), None, "default")
    for n in range(3):
        for m in range(2):
            weight = np.asarray(node.base)[2 * m : 2 * m + 2, 2 * n : 2 * n + 2].T  # of the block, [out, in] as the paper writes it
            wanted = weight @ np.asarray(node.block[n]) + np.asarray(node.block[n])
            np.testing.assert_allclose(node.delta()[2 * m : 2 * m + 2, 2 * n : 2 * n + 2], wanted.T, rtol=1e-5, atol=1e-5)
