"""Keys are functions of key, path and layer, and of nothing else."""

import hashlib

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.peft.keys import key_at, per_layer

KEY = jax.random.key(0)


def bits(key):
    return tuple(jax.random.key_data(key).tolist())


def draw(key):
    return jax.random.normal(key, (3,))


def test_keys_differ_between_paths_and_seeds_and_are_the_same_on_any_machine():
    paths = ["", "a", "b", "ab", "blocks/attn/q/kernel/tone/a", "blocks/attn/q/kernel/tone/b"]
    keys = [bits(key_at(seed, path)) for seed in (KEY, jax.random.key(1)) for path in paths]
    assert len(set(keys)) == len(keys)
    assert bits(key_at(KEY, "blocks/attn/q")) == bits(jax.jit(lambda key: key_at(key, "blocks/attn/q"))(KEY))
    word = int.from_bytes(hashlib.sha256(b"a").digest()[:8], "little")
    want = jax.random.fold_in(jax.random.fold_in(KEY, word & 0xFFFFFFFF), word >> 32)
    assert bits(key_at(KEY, "a")) == bits(want)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 4), st.integers(1, 4))
def test_layers_keep_their_values_however_the_stack_is_cut(start, length):
    whole = per_layer(draw, KEY, "a", range(9))
    np.testing.assert_array_equal(
        per_layer(draw, KEY, "a", range(start, start + length)), whole[start : start + length]
    )


def test_layers_and_paths_differ():
    whole = np.asarray(per_layer(draw, KEY, "a", range(4)))
    assert len(np.unique(whole)) == whole.size
    assert not np.isin(per_layer(draw, KEY, "b", range(4)), whole).any()


def test_a_parameter_outside_the_stack_has_no_layer_axis():
    np.testing.assert_array_equal(per_layer(draw, KEY, "a", None), draw(key_at(KEY, "a")))
