"""RoAd turns pairs of outputs, bias and all, by angles of their own."""

import jax
import numpy as np
import pytest
from tiny import BIASED, SMOL, TINY, base, logits, moved

from peftjax.models.decoder import abstract_params
from peftjax.nn.tree import get
from peftjax.peft.attach import attach
from peftjax.peft.merge import merge
from peftjax.peft.partition import partition, size
from peftjax.peft.road import road

KEY = jax.random.key(0)


def node_of(variant, config=TINY):
    params = moved(attach(base(config), [road(variant=variant, group=8, targets="q_proj")], KEY))
    return params, jax.tree.map(lambda leaf: leaf[1], get(params, "blocks/attn/q/kernel"))


def matrix(node, width=24):
    """R [out, out], h -> h Rᵀ, of groups of eight: output i of a group pairs with i + 4."""
    theta, alpha, turned = np.asarray(node.theta), np.asarray(node.alpha), np.zeros((width, width))
    for out in range(width):
        group, i = divmod(out, 8)
        other = 8 * group + (i + 4) % 8
        if node.variant == 4:
            one, two = 16 * group + i, 16 * group + 8 + i
        else:
            one = two = 4 * group + i % 4 if node.variant == 1 else out
        turned[out, out] = alpha[one] * np.cos(theta[one])
        turned[out, other] = (-1 if i < 4 else 1) * alpha[two] * np.sin(theta[two])
    return turned


@pytest.mark.parametrize("variant", [1, 2, 4])
def test_pairs_are_turned_and_scaled(variant):
    _, node = node_of(variant)
    x = np.asarray(jax.random.normal(KEY, (3, 16)))
    np.testing.assert_allclose(node.dot(x), x @ np.asarray(node.base) @ matrix(node).T, rtol=1e-4, atol=1e-5)


def test_a_bias_is_turned_with_its_output_also_when_merged():
    params, node = node_of(2, BIASED)
    merged = merge(params)
    bias = np.asarray(get(base(BIASED), "blocks/attn/q/bias")[1])
    np.testing.assert_allclose(get(merged, "blocks/attn/q/bias")[1], matrix(node) @ bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits(merged, BIASED), logits(params, BIASED), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", [1, 2, 4])
def test_the_number_of_trainables_on_smollm2(variant):
    params = jax.eval_shape(lambda p: attach(p, [road(variant=variant, targets="q_proj")], KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == 30 * 576 * variant


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="road variant 3 is none of 1, 2, 4"):
        road(variant=3)
    with pytest.raises(ValueError, match="road group 5 is no positive even number"):
        road(group=5)
    with pytest.raises(ValueError, match="road group 64 does not divide the 24 outputs of .*/q/kernel; the nearest that does is 24"):
        attach(base(), [road(targets="q_proj")], KEY)
