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
