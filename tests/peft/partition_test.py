"""A tree comes apart into what is trained and what is frozen, and together again as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TIED, base, equal_trees

from peftjax.nn.quant import quantise
from peftjax.nn.tree import flatten, get, put
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import pfeiffer, scaled_parallel
from peftjax.peft.lora import lora
from peftjax.peft.partition import combine, kept, partition, size
from peftjax.peft.parts import Trained, norm_only

KEY = jax.random.key(0)
METHODS = (
    lora(rank=2, targets=["q_proj", "lm_head"], dropout=0.1, name="tone"), lora(rank=2, targets="q_proj", name="task"),
    pfeiffer(size=3, name="net"), scaled_parallel(size=3, name="learned"), norm_only(name="norms"),
)  # fmt: skip


def tree():
    return attach(base(TIED), METHODS, KEY)


def test_every_leaf_is_in_one_half_under_its_own_path():
    params = tree()
    trainable, frozen = partition(params)
    assert not set(flatten(trainable)) & set(flatten(frozen))
    assert set(flatten(trainable)) | set(flatten(frozen)) == set(flatten(params))
    equal_trees(combine(trainable, frozen), params)
    assert jax.tree.structure(combine(trainable, frozen)) == jax.tree.structure(params)


def test_the_nodes_say_what_is_trained():
    trainable, frozen = (set(flatten(half)) for half in partition(tree()))
    assert {f"blocks/attn/q/kernel/{name}/{factor}" for name in ("tone", "task") for factor in "ab"} < trainable
    assert {"head/kernel/tone/a", "blocks/mlp_out/learned/scale", "final_norm/scale/norms/value"} < trainable
    assert {"blocks/attn/q/kernel", "blocks/attn/q/kernel/tone/scale", "blocks/attn/q/kernel/tone/dropout"} < frozen
    assert {"blocks/mlp_out/net/scale", "embed/embedding", "head/kernel", "final_norm/scale"} < frozen


@pytest.mark.parametrize("names", [["tone"], ["task", "net"]])
def test_only_the_named_adapters_train(names):
    trainable, _ = partition(tree(), names)
    assert flatten(trainable) and all(any(f"/{name}/" in path for name in names) for path in flatten(trainable))
    assert set(flatten(trainable)) == {p for p in flatten(partition(tree())[0]) if any(f"/{n}/" in p for n in names)}


def test_what_is_kept_is_all_of_the_adapters_that_do_not_train():
    found = set(flatten(kept(partition(tree(), ["task", "net", "norms"])[1])))
    assert found == {path for path in flatten(tree()) if "/tone/" in path or "/learned/" in path}
    assert not flatten(kept(partition(tree())[1]))


def test_abstract_trees_come_apart_too():
    abstract = jax.eval_shape(tree)
    trainable, frozen = partition(abstract)
    assert set(flatten(trainable)) == set(flatten(partition(tree())[0]))
    assert flatten(combine(trainable, frozen)) == flatten(abstract)


@pytest.mark.parametrize(
    ("params", "names", "message"),
    [
        (tree, ["tune"], r"adapters asked for \['tune'\], in the tree \['learned', 'net', 'norms', 'task', 'tone'\]"),
        (tree, [], "nothing to train: adapters asked for none"),
        (base, None, "nothing to train: adapters asked for none, in the tree none"),
    ],
)
def test_nothing_to_train_is_refused(params, names, message):
    with pytest.raises(ValueError, match=message):
        partition(params(), names)


def test_integers_have_no_gradient():
    params = put(base(), "blocks/attn/q/kernel", Trained(None, jnp.ones((2, 16, 24), jnp.int8), "tone"))
    with pytest.raises(TypeError, match="blocks/attn/q/kernel/tone/value is int8 and has no gradient"):
        partition(params)


def test_gradients_have_the_structure_of_the_trainables():
    trainable, frozen = partition(tree())
    grads = jax.grad(lambda t: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(combine(t, frozen))))(trainable)
    assert jax.tree.structure(grads) == jax.tree.structure(trainable)
    np.testing.assert_allclose(get(grads, "blocks/attn/q/kernel").a, 2 * get(trainable, "blocks/attn/q/kernel").a)


def test_size_counts_values_and_bytes():
    assert size({"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(4, jnp.bfloat16), "d": None}}) == (10, 32)
    assert size(jax.eval_shape(tree)) == size(tree())


def test_a_quantised_kernel_counts_as_the_weight_it_stands_for():
    params = put(base(), "blocks/attn/q/kernel", quantise(get(base(), "blocks/attn/q/kernel"), "int8"))
    params = attach(params, [lora(rank=2)], jax.random.key(0))
    dense = attach(base(), [lora(rank=2)], jax.random.key(0))
    for ours, theirs in zip((params, *partition(params)), (dense, *partition(dense)), strict=True):
        assert size(ours)[0] == size(theirs)[0] and size(ours)[1] <= size(theirs)[1]

