"""Members' trees made alike: rates of 0, rows of zeros, and what cannot lie on each other."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import base

from peftjax.nn.tree import flatten
from peftjax.peft import attach, lora, partition, pfeiffer
from peftjax.train.population.trees import alike, cropped, grown, largest, ranked, signature, without_rates

KEY = jax.random.key(0)


def tree(*methods):
    return partition(attach(base(), list(methods), KEY))


def test_a_rate_that_one_has_is_zero_in_the_others():
    with_rate, without = (tree(lora(rank=2, dropout=rate), pfeiffer(size=3, dropout=0.2, name="b"))[1] for rate in (0.3, 0.0))
    first, second = alike([without, with_rate])
    path = "blocks/attn/q/kernel/default/dropout"
    assert path not in flatten(without)
    np.testing.assert_array_equal(flatten(first)[path], np.zeros(2))
    np.testing.assert_allclose(flatten(second)[path], np.full(2, 0.3))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert jax.tree.structure(without_rates(first)) == jax.tree.structure(without_rates(with_rate))


def test_ranks_do_not_keep_trees_apart_and_targets_do():
    trees = {name: tree(method)[0] for name, method in {
        "low": lora(rank=2), "high": lora(rank=5), "few": lora(rank=2, targets="q_proj"), "dora": lora(rank=2, dora=True),
    }.items()}
    signatures = {name: signature(one, flatten(ranked(one))) for name, one in trees.items()}
    assert signatures["low"] == signatures["high"] and len(set(signatures.values())) == 3
    assert signature(trees["low"], {}) != signature(trees["high"], {})


def test_what_is_grown_and_cropped_is_what_it_was():
    flats = [flatten(tree(lora(rank=rank))[0]) for rank in (2, 5)]
    shapes = largest(flats)
    for path, leaf in flats[0].items():
        big = grown(leaf, shapes[path])
        assert big.shape == flats[1][path].shape and float(jnp.sum(jnp.abs(big))) == float(jnp.sum(jnp.abs(leaf)))
        np.testing.assert_array_equal(cropped(big, leaf.shape), leaf)
