"""What layers share is held once, reaches every layer, gets the sum of their gradients, and leaves with its adapter."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TIED, base, equal_trees, logits

from peftjax.models.decoder import Decoder
from peftjax.nn.kernels import node
from peftjax.nn.shared import Shared, hold, unshared
from peftjax.nn.tree import flatten, get, put
from peftjax.peft.attach import adapters, detach
from peftjax.peft.delta import Delta
from peftjax.peft.merge import merge
from peftjax.peft.partition import combine, partition
from peftjax.peft.roles import roles

PATH = "blocks/attn/q/kernel"


@node(arrays=("base", "a", "weight", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class Plain(Delta):
    """ΔW = weight · a, with a [in, out] for all layers or each its own."""

    base: Any
    a: Any
    weight: jax.Array
    name: str = "tone"
    dropout: None = None

    trainable = ("a", "weight")

    def delta(self):
        return self.weight[..., None, None] * jnp.broadcast_to(self.a, self.base.shape)


def trees():
    """The same adapter with one `a` for all layers, and with a copy of it in each."""
    params = base(TIED)
    kernel = get(params, PATH)
    a = 0.1 * jax.random.normal(jax.random.key(1), kernel.shape[1:])
    weight = jnp.arange(1.0, 1 + kernel.shape[0])
    copies = put(params, PATH, Plain(kernel, jnp.broadcast_to(a, kernel.shape), weight))
    params, shared = hold(params, "tone/a", a, "tone", trains=True)
    return put(params, PATH, Plain(kernel, shared, weight)), copies


@pytest.mark.parametrize("options", [{}, {"remat": "block"}, {"unroll": True}], ids=str)
def test_the_result_and_the_gradients_are_those_of_copies(options):
    def loss(trainable, frozen):
        out = Decoder(TIED, **options).apply({"params": combine(trainable, frozen)}, jnp.arange(6)[None])
        return jnp.sum(jnp.square(out))

    shared, copies = (jax.jit(jax.value_and_grad(loss))(*partition(tree)) for tree in trees())
    np.testing.assert_allclose(shared[0], copies[0], rtol=1e-5)
    got, expected = flatten(shared[1]), flatten(copies[1])
    np.testing.assert_allclose(got["shared/tone/a/value"], expected[f"{PATH}/tone/a"].sum(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got[f"{PATH}/tone/weight"], expected[f"{PATH}/tone/weight"], rtol=1e-3, atol=1e-4)


def test_it_is_held_once_and_is_no_leaf_of_the_node():
    shared, copies = trees()
    assert f"{PATH}/tone/a" not in flatten(shared)
    assert flatten(shared)["shared/tone/a/value"].shape == flatten(copies)[f"{PATH}/tone/a"].shape[1:]
    assert flatten(roles(shared))["shared/tone/a/value"] == "matrix"
    assert adapters(shared) == ["tone"]


def test_it_leaves_with_its_adapter():
    equal_trees(detach(trees()[0]), base(TIED))


def test_without_a_store_the_nodes_hold_the_values():
    shared, _ = trees()
    tree = unshared(shared)
    assert "shared" not in tree and get(tree, PATH).a.shape == get(tree, PATH).base.shape[1:]


def test_merging_adds_it_to_each_layer():
    shared, copies = (merge(tree) for tree in trees())
    equal_trees(shared, copies)


def test_a_value_that_is_not_held_is_named():
    params = put(base(TIED), PATH, Plain(get(base(TIED), PATH), Shared("gone/a"), jnp.ones(TIED.layers)))
    params, _ = hold(params, "tone/b", jnp.ones(2), "tone")
    with pytest.raises(KeyError, match="shared/gone/a is shared by layers of this tree, which does not hold it"):
        logits(params)
