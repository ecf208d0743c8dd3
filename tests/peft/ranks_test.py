"""Numbers of targets and layers: who gets which, and what a stack of several ranks holds."""

import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.peft.ranks import at_layers, at_once, leaf, own_rows
from peftjax.peft.select import Target

STACK = Target("blocks_4_7/attn/q/kernel", "blocks/attn/q/kernel", range(4, 7), None)
HEAD = Target("head/kernel", "head/kernel", None, None)


def test_the_first_pattern_that_names_a_layer_or_its_stack_counts():
    patterns = {"blocks/5/attn/q": 1, "q_proj": 2, "blocks/6/.*": 3}
    assert at_layers(patterns, STACK, 9) == [2, 1, 2]
    assert at_layers({"k_proj": 1}, STACK, 9) == [9, 9, 9] and at_layers({"lm_head": 1}, HEAD, 9) == [1]


def test_one_number_for_a_stack():
    assert at_once({"q_proj": 2}, STACK, 9, "rank") == 2
    with pytest.raises(ValueError, match=r"rank must be one number in a scanned stack; blocks_4_7/attn/q/kernel has \[2, 9\]"):
        at_once({"blocks/5/attn/q": 2}, STACK, 9, "rank")


def test_leaves_have_a_layer_axis_in_a_stack_alone():
    assert leaf([1, 2, 3], STACK).shape == (3,) and leaf([1], HEAD).shape == () and leaf([1], HEAD).dtype == jnp.float32


def test_rows_past_the_rank_of_a_layer_are_zero():
    value = jnp.ones((3, 2, 5))
    assert own_rows(value, [2, 2, 2]) is value and own_rows(value[0], [2]).shape == (2, 5)
    np.testing.assert_array_equal(own_rows(value, [2, 1, 2]).sum(axis=-1), [[5, 5], [5, 0], [5, 5]])
