"""BOFT's factors are block-diagonal rotations of inputs that lie ever further apart."""

import jax
import numpy as np
import pytest
import scipy.linalg
from tiny import BIASED, SMOL, base, moved

from peftjax.models.decoder import abstract_params
from peftjax.nn.tree import get
from peftjax.peft.attach import attach
from peftjax.peft.boft import boft
from peftjax.peft.merge import merge
from peftjax.peft.partition import partition, size

KEY = jax.random.key(0)


def rotation(free):
    q = 0.5 * (free - free.T)
    return (np.eye(len(q)) - q) @ np.linalg.inv(np.eye(len(q)) + q)


def test_three_factors_are_permuted_block_diagonals():
    """16 inputs in half-blocks of two: factor 1 takes halves 0 2 1 3 of each eight, factor 2 halves 0 2 4 6 1 3 5 7 of all."""
    params = moved(attach(base(), [boft(block_size=4, factors=3, targets="q_proj")], KEY))
    node = jax.tree.map(lambda leaf: leaf[0], get(params, "blocks/attn/q/kernel"))
    orders = [range(8), (0, 2, 1, 3, 4, 6, 5, 7), (0, 2, 4, 6, 1, 3, 5, 7)]
    whole = np.eye(16)
    for free, halves in zip(np.asarray(node.rotation), orders, strict=True):
        permutation = np.eye(16)[[2 * half + i for half in halves for i in (0, 1)]]
        whole = permutation @ scipy.linalg.block_diag(*map(rotation, free)) @ permutation.T @ whole
    np.testing.assert_allclose(whole @ whole.T, np.eye(16), atol=1e-5)
    assert np.count_nonzero(np.abs(whole) > 1e-6) == 256  # every input reaches every other
    x = np.asarray(jax.random.normal(KEY, (3, 16)))
    np.testing.assert_allclose(node.dot(x), (x @ whole @ np.asarray(node.base)) * np.asarray(node.scale), rtol=1e-3, atol=1e-4)


def test_a_bias_is_not_scaled():
    params = moved(attach(base(BIASED), [boft(targets="q_proj")], KEY))
    np.testing.assert_array_equal(get(merge(params), "blocks/attn/q/bias"), get(base(BIASED), "blocks/attn/q/bias"))


@pytest.mark.parametrize(("options", "count"), [({"block_size": 8}, 299_520), ({"block_size": 8, "factors": 2}, 30 * (4 * 576 * 8 + 768))])
def test_the_number_of_trainables_on_smollm2(options, count):
    methods = [boft(targets=["q_proj", "v_proj"], **options)]
    params = jax.eval_shape(lambda p: attach(p, methods, KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == count


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="boft block_size 3 with 2 factors"):
        boft(block_size=3, factors=2)
    with pytest.raises(ValueError, match="block_size 1 with 1 factors"):
        boft(block_size=1)
    with pytest.raises(ValueError, match="block_size 4 and 4 factors mix groups of 32 inputs, which do not divide the 16 of blocks/attn/q"):
        attach(base(), [boft(factors=4, targets="q_proj")], KEY)
