"""One set of trained values for all layers computes as copies of it would, and learns from all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BIASED, TINY, base, equal_trees, logits, moved, train_batch

from peftjax.models.decoder import Decoder, cut
from peftjax.nn.shared import Shared, SharedValue
from peftjax.nn.tree import flatten, get, put, walk
from peftjax.peft.across_layers import across_layers
from peftjax.peft.attach import attach, cut_points, detach
from peftjax.peft.bottleneck import houlsby
from peftjax.peft.ia3 import ia3
from peftjax.peft.invertible import invertible
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.partition import combine, partition, size
from peftjax.peft.parts import full
from peftjax.peft.roles import roles
from peftjax.peft.spec import from_data, to_data
from peftjax.train.loss import token_losses

KEY = jax.random.key(0)
METHODS = [across_layers(lora(rank=2, alpha=3)), across_layers(houlsby(size=3, name="task"))]


def copies(params):
    """The tree with a copy of each shared value in every layer."""

    def spread(leaf):
        if not isinstance(leaf, Shared):
            return leaf
        value = get(params, f"shared/{leaf.path}").value
        return jnp.broadcast_to(value, (2, *value.shape))

    rest = {name: value for name, value in params.items() if name != "shared"}
    return jax.tree.map(spread, rest, is_leaf=lambda leaf: isinstance(leaf, Shared))


def loss(trainable, frozen):
    return jnp.sum(token_losses(Decoder(TINY), combine(trainable, frozen), train_batch())[0])


def test_values_and_gradients_are_those_of_copies():
    params = moved(attach(base(), METHODS, KEY))
    one, many = (jax.jit(jax.value_and_grad(loss))(*partition(tree)) for tree in (params, copies(params)))
    np.testing.assert_allclose(one[0], many[0], rtol=1e-5)
    gradients = flatten(many[1])
    for path, leaf in flatten(one[1]).items():
        logical = path.removeprefix("shared/").removesuffix("/value")
        name, _, rest = logical.partition("/")
        head, _, field = rest.rpartition("/")
        np.testing.assert_allclose(leaf, gradients[f"{head}/{name}/{field}"].sum(0), rtol=1e-3, atol=1e-4, err_msg=path)
    np.testing.assert_allclose(logits(merge(detach(params, ["task"]))), logits(detach(params, ["task"])), rtol=1e-3, atol=1e-4)


def test_there_are_as_many_fewer_trainables_as_layers():
    shared, own = (size(partition(attach(base(), methods, KEY))[0])[0] for methods in (METHODS, [method.of for method in METHODS]))
    assert shared * TINY.layers == own


def test_the_first_layers_values_are_held_whatever_the_cut():
    params = attach(base(), METHODS, KEY)
    own = attach(base(), [lora(rank=2)], KEY)
    np.testing.assert_array_equal(get(params, "shared/default/blocks/attn/q/kernel/a").value, get(own, "blocks/attn/q/kernel").a[0])
    equal_trees(cut(attach(cut(base(), TINY, (1, 1)), METHODS, KEY), TINY, ()), params)


def test_roles_stay_what_they_were():
    found = flatten(roles(attach(base(), [across_layers(lora(rank=2)), across_layers(ia3(name="task"))], KEY)))
    assert found["shared/default/blocks/attn/q/kernel/a/value"] == "matrix"
    assert found["shared/default/blocks/attn/q/kernel/b/value"] == "fast"
    assert found["shared/task/blocks/attn/k/kernel/scale/value"] == "vector"


def test_transforms_merge_with_their_biases():
    params = moved(attach(base(BIASED), [across_layers(ia3())], KEY))
    np.testing.assert_allclose(logits(merge(params), BIASED), logits(params, BIASED), rtol=1e-3, atol=1e-4)


def test_chosen_layers_share():
    method = across_layers(lora(rank=2, layers=[1]))
    assert cut_points([method], 2) == (1, 1)
    params = attach(base(TINY, (1, 1)), [method], KEY)
    assert not [path for path, value in walk(params["blocks_0_1"]) if hasattr(value, "a")]
    assert isinstance(get(params, "blocks_1_2/attn/q/kernel").a, Shared)


def test_an_adapter_of_the_same_name_that_was_there_keeps_its_values():
    before = attach(base(), [lora(rank=2, targets="q_proj", name="tone")], KEY)
    params = across_layers(ia3(name="tone")).attach(before, KEY)
    assert isinstance(get(params, "blocks/attn/q/kernel").a, jax.Array)
    assert {path for path, value in walk(params) if isinstance(value, SharedValue)} == {
        f"shared/tone/blocks/{place}/kernel/scale" for place in ("attn/k", "attn/v", "mlp/down")
    }


def test_the_name_is_that_of_the_method_unless_given():
    assert across_layers(lora(name="tone")).name == "tone"
    renamed = dataclasses.replace(across_layers(lora(rank=2, name="tone")), name="task")
    assert {node.name for _, node in walk(put(attach(base(), [renamed], KEY), "embed", None)) if hasattr(node, "name")} == {"task"}
    assert from_data(to_data(renamed)) == renamed


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lora(rank=2, dora=True), "DoRA at blocks/attn/k/kernel starts from each layer's own weight"),
        (full(targets="q_proj"), "Trained at blocks/attn/q/kernel starts from each layer's own weight"),
        (invertible(), r"across_layers\(invertible\(...\)\): nothing of it is trained in the stack"),
    ],
)
def test_what_cannot_be_shared_is_refused(method, message):
    with pytest.raises(ValueError, match=message):
        attach(base(), [across_layers(method)], KEY)


def test_a_rank_of_one_layers_own_is_refused_when_stated():
    with pytest.raises(ValueError, match="rank_pattern 'blocks/1/attn/q' gives one layer a rank of its own"):
        across_layers(lora(rank_pattern={"blocks/1/attn/q": 4}))
