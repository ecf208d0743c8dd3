"""What transforms have in common: exact starts, chains of them, stacks of layers, weights of 16 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import base, moved

from peftjax.nn.kernels import dense
from peftjax.nn.tree import get
from peftjax.peft.attach import attach
from peftjax.peft.boft import boft
from peftjax.peft.hra import hra
from peftjax.peft.ia3 import ia3
from peftjax.peft.lora import lora
from peftjax.peft.oft import oft
from peftjax.peft.road import road

KEY = jax.random.key(0)
Q = "blocks/attn/q/kernel"
EXACT = [
    ia3(targets="q_proj", feedforward=()), ia3(targets="q_proj", feedforward="q_proj"), oft(block_size=4, targets="q_proj"),
    oft(block_size=4, exact=True, coft=True, targets="q_proj"), boft(factors=2, targets="q_proj"),
    *(road(variant=variant, group=4, targets="q_proj") for variant in (1, 2, 4)),
]  # fmt: skip


@pytest.mark.parametrize("method", EXACT, ids=lambda method: type(method).__name__)
def test_a_new_transform_is_the_base_bit_for_bit_and_so_is_one_that_is_off(method):
    fresh = get(attach(base(), [method], KEY), Q)
    x = jax.random.normal(KEY, (3, 16))
    for node in (fresh, get(moved(attach(base(), [method], KEY)), Q).off()):
        layer = jax.tree.map(lambda leaf: leaf[1], node)
        np.testing.assert_array_equal(layer.dot(x), jnp.dot(x, get(base(), Q)[1]))


def test_reflections_in_pairs_cancel_up_to_rounding():
    node = jax.tree.map(lambda leaf: leaf[1], get(attach(base(), [hra(rank=4, targets="q_proj")], KEY), Q))
    x = jax.random.normal(KEY, (3, 16))
    np.testing.assert_allclose(node.dot(x), x @ node.base, rtol=1e-5, atol=1e-6)


def test_a_chain_merges_layer_by_layer():
    on_q = {"targets": "q_proj"}
    methods = [
        oft(block_size=4, name="a", **on_q), lora(rank=2, name="b", **on_q), road(group=4, name="c", **on_q),
        ia3(feedforward=(), name="d", **on_q),
    ]  # fmt: skip
    node = get(moved(attach(base(), methods, KEY)), Q)
    whole = node.merge()
    for layer in range(2):
        one = jax.tree.map(lambda leaf, i=layer: leaf[i], node)
        np.testing.assert_allclose(dense(one), whole[layer], rtol=1e-5, atol=1e-6)
        x = jax.random.normal(KEY, (3, 16))
        np.testing.assert_allclose(one.dot(x), x @ whole[layer], rtol=1e-4, atol=1e-5)


def test_a_bias_under_a_lora_goes_through_what_stands_above_it():
    """A LoRA's own bias is scaled with the output, whichever way a stack of layers is seen."""
    methods = [lora(rank=2, lora_bias=True, targets="q_proj", name="a"), ia3(targets="q_proj", feedforward=(), name="b")]
    node = get(moved(attach(base(), methods, KEY)), Q)
    want = node.scale * node.base.bias * node.base.scale[:, None]
    np.testing.assert_allclose(node.merged_bias(), want, rtol=1e-6)
    np.testing.assert_allclose(jax.tree.map(lambda leaf: leaf[1], node).merged_bias(), want[1], rtol=1e-6)


def test_a_weight_of_16_bits_is_merged_in_32():
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base())
    node = get(moved(attach(narrow, [oft(block_size=4, targets="q_proj")], KEY)), Q)
    wide = node.__class__(**{**vars(node), "base": node.base.astype(jnp.float32)}).merge()
    assert node.merge().dtype == jnp.bfloat16
    np.testing.assert_array_equal(node.merge(), wide.astype(jnp.bfloat16))
