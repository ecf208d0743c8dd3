"""OFT rotates the input in blocks, in both parametrisations, constrained or shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMOL, base, moved

from peftjax.models.decoder import abstract_params
from peftjax.nn.tree import get
from peftjax.peft.attach import attach
from peftjax.peft.oft import oft
from peftjax.peft.partition import partition, size

KEY = jax.random.key(0)


def node_of(amount=0.1, **options):
    """One layer's node around q of the tiny base, with 16 inputs."""
    params = moved(attach(base(), [oft(targets="q_proj", **options)], KEY), amount)
    return jax.tree.map(lambda leaf: leaf[1], get(params, "blocks/attn/q/kernel"))


def skew(node, block=0):
    q = np.zeros((node.size, node.size))
    q[np.triu_indices(node.size, 1)] = np.asarray(node.skew[block])
    return q - q.T


def test_the_series_is_written_out():
    node = node_of(block_size=4)
    q, eye = skew(node, 2), np.eye(4)
    np.testing.assert_allclose(node.rotation()[2], eye + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q, atol=1e-6)
    np.testing.assert_allclose(node_of(block_size=4, terms=2).rotation()[2], eye + 2 * q, atol=1e-6)
    np.testing.assert_allclose(node_of(block_size=4, terms=4).rotation()[2], eye + 2 * q + 2 * q @ q + q @ q @ q, atol=1e-6)
    np.testing.assert_array_equal(node_of(block_size=4, terms=3).rotation(), node_of(block_size=4, terms=4).rotation())


def test_the_exact_form_turns_the_other_way_round():
    series, exact = node_of(0.02, block_size=4), node_of(0.02, block_size=4, exact=True)
    np.testing.assert_allclose(series.rotation(), jnp.swapaxes(exact.rotation(), -1, -2), atol=1e-4)
    far = np.asarray(node_of(1.0, block_size=4, exact=True).rotation())
    np.testing.assert_allclose(far @ far.swapaxes(-1, -2), np.broadcast_to(np.eye(4), (4, 4, 4)), atol=1e-5)


def test_the_input_is_rotated_in_blocks():
    node = node_of(block_size=8)
    x = np.asarray(jax.random.normal(KEY, (3, 16)))
    turned = np.concatenate([x[:, :8] @ np.asarray(node.rotation()[0]), x[:, 8:] @ np.asarray(node.rotation()[1])], axis=-1)
    np.testing.assert_allclose(node.dot(x), turned @ np.asarray(node.base), rtol=1e-4, atol=1e-5)


def test_coft_keeps_each_block_near_and_lets_gradients_pass():
    node = node_of(1.0, block_size=4, coft=True, eps=0.2)
    free = node_of(1.0, block_size=4)
    norms = [np.linalg.norm(skew(free, i)) for i in range(4)]
    assert min(norms) > 0.2 / 2
    for i, norm in enumerate(norms):
        q = skew(free, i) * (0.2 / 4**0.5 / norm)
        np.testing.assert_allclose(node.rotation()[i], np.eye(4) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q, atol=1e-5)
    at_zero = jax.tree.map(jnp.zeros_like, node.skew)
    grads = jax.grad(lambda skew: jnp.sum(type(node)(node.base, skew, node.eps, 4, 5, "t").rotation()[:, 0, 1]))(at_zero)
    assert np.isfinite(grads).all() and grads.any()
    near = node_of(1e-3, block_size=4, coft=True, eps=0.2)
    np.testing.assert_allclose(near.rotation(), node_of(1e-3, block_size=4).rotation(), atol=1e-7)


def test_the_number_of_trainables_on_smollm2():
    def count(**options):
        params = jax.eval_shape(lambda p: attach(p, [oft(**options)], KEY), abstract_params(SMOL))
        return size(partition(params)[0])[0]

    assert count(block_size=16, targets=["q_proj", "v_proj"]) == 259_200
    assert count(targets=["q_proj", "v_proj", "down_proj"]) == 1_249_920
    assert count(blocks=18, targets="q_proj") == 30 * 18 * 32 * 31 // 2
    assert count(block_size=16, block_share=True, targets="q_proj") == 30 * 16 * 15 // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 8, "blocks": 2}, "oft wants block_size or blocks, one of them and positive; found 8 and 2"),
        ({"block_size": None}, "one of them and positive; found None and None"),
        ({"block_size": 0}, "one of them and positive"),
        ({"terms": 1}, "oft terms 1: with less than two"),
    ],
)
def test_wrong_hyper_parameters_are_refused_when_stated(options, message):
    with pytest.raises(ValueError, match=message):
        oft(**options)


def test_blocks_that_do_not_divide_the_width_are_refused_with_the_nearest_size():
    with pytest.raises(ValueError, match="oft block_size 6 does not divide the 16 inputs of .*/q/kernel; the nearest that does is 4"):
        attach(base(), [oft(block_size=6, targets="q_proj")], KEY)
    with pytest.raises(ValueError, match="oft blocks 3 does not divide the 16 inputs"):
        attach(base(), [oft(blocks=3, targets="q_proj")], KEY)
    with pytest.raises(ValueError, match="oft blocks of size 1 at blocks/attn/q/kernel cannot turn"):
        attach(base(), [oft(blocks=16, targets="q_proj")], KEY)
