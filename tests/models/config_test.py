"""A config that cannot be a model is refused at once."""

import dataclasses

import jax
import pytest
from tiny import SMOL, TINY

from peftjax.models.decoder import abstract_params


def test_heads_must_share_key_value_heads_evenly():
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key/value heads evenly"):
        dataclasses.replace(TINY, kv_heads=3)


def test_rotary_positions_turn_pairs():
    with pytest.raises(ValueError, match="head_size 5 is odd"):
        dataclasses.replace(TINY, head_size=5)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rotary_size": 3}, "rotary_size 3 is odd"),
        ({"rotary_size": 8}, "rotary_size 8 is more than the 6 elements of a head"),
        ({"full_layers": (0,)}, "there is no window"),
        ({"local_rope_base": 5.0}, "there is no window"),
        ({"window": 2, "full_layers": (2,)}, r"full_layers \(2,\) are not all among the 2 layers"),
    ],
)
def test_what_cannot_be_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TINY, **changes)


def test_learned_positions_turn_nothing_and_need_no_pairs():
    assert dataclasses.replace(TINY, learned_positions=True, head_size=5).head_size == 5


def test_local_layers_are_those_with_the_window():
    assert dataclasses.replace(TINY, window=2, full_layers=(1,)).local_layers == (True, False)
    assert dataclasses.replace(TINY, window=2).local_layers == (True, True)
    assert TINY.local_layers == (False, False)


def test_configs_are_equal_by_value_and_hashable():
    assert dataclasses.replace(TINY) == TINY and hash(dataclasses.replace(TINY)) == hash(TINY)
    assert dataclasses.replace(TINY, window=3) != TINY


def test_the_size_of_smollm2_is_that_of_its_checkpoint():
    leaves = jax.tree.leaves(abstract_params(SMOL))
    assert sum(leaf.size for leaf in leaves) == 134_515_008


def test_an_activation_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="'sliu' is none of silu"):
        dataclasses.replace(TINY, activation="sliu")
    with pytest.raises(ValueError, match="0 layers"):
        dataclasses.replace(TINY, layers=0)
