"""A head of an adapter's own: on bases with and without one, alone and with other methods, gone without a trace."""

import jax
import numpy as np
import pytest
import tiny
from tiny import equal_trees
from tiny_encoder import BARE, TINY, hidden, params, run, tokens

from peftjax.models.encoder import Encoder, abstract_params
from peftjax.nn.kernels import dense
from peftjax.nn.tree import flatten, get
from peftjax.peft import activate, adapters, attach, classifier, detach, full, head_only, lora, merge, partition, pfeiffer
from peftjax.peft.spec import from_data, to_data

KEY = jax.random.key(0)
TWO = classifier(labels=("left", "right"))


def logits(tree, config=TINY):
    return np.asarray(run(tree, tokens(), Encoder(config)))


@pytest.mark.parametrize("config", [TINY, BARE])
def test_the_head_is_a_function_of_the_first_token(config):
    tree = attach(params(config), [TWO], KEY)
    first = hidden(params(config), tokens(), config)[:, 0]
    pool, head = (dense(tree[name]["kernel"]) for name in ("pool", "head"))
    np.testing.assert_allclose(logits(tree, config), np.tanh(first @ pool) @ head, atol=1e-6)


@pytest.mark.parametrize("config", [TINY, BARE])
@pytest.mark.parametrize("hidden_layer", [True, False])
def test_detached_the_base_is_bit_for_bit_what_it_was(config, hidden_layer):
    before = params(config)
    tree = attach(before, [classifier(labels=2, hidden=hidden_layer)], KEY)
    equal_trees(detach(tree), before)
    assert set(flatten(detach(tree))) == set(flatten(before))


def test_without_a_hidden_layer_the_bases_pooler_is_read_and_stays():
    tree = attach(params(), [classifier(labels=2, hidden=False)], KEY)
    assert set(flatten(partition(tree)[0])) == {"head/kernel/default/value", "head/bias/default/value"}
    pool = {leaf: np.asarray(value) for leaf, value in params()["pool"].items()}
    first = np.tanh(hidden(params(), tokens())[:, 0] @ pool["kernel"] + pool["bias"])
    np.testing.assert_allclose(logits(tree), first @ dense(tree["head"]["kernel"]), atol=1e-6)


def test_initial_values_depend_on_nothing_else_and_are_small():
    alone = attach(params(), [TWO], KEY)
    beside = attach(params(BARE), [pfeiffer(size=2), TWO, lora(rank=2)], KEY)
    for path in ("pool/kernel", "head/kernel"):
        np.testing.assert_array_equal(get(alone, path).value, get(beside, path).value)
        assert 0.01 < float(get(alone, path).value.std()) < 0.03
    assert not dense(alone["head"]["bias"]).any()
    other = attach(params(), [classifier(labels=2, name="other")], KEY)
    assert not np.array_equal(get(alone, "head/kernel").value, get(other, "head/kernel").value)


def test_abstract_trees_are_accepted():
    tree = jax.eval_shape(lambda p: attach(p, [TWO], KEY), abstract_params(TINY))
    assert tree["head"]["kernel"].shape == (TINY.width, 2)


def test_two_adapters_have_a_head_each():
    one, two = classifier(labels=2, name="one"), classifier(labels=3, name="two")
    both = attach(params(), [one, two], KEY)
    assert adapters(both) == ["one", "two"]
    for name, method in (("one", one), ("two", two)):
        np.testing.assert_array_equal(logits(activate(both, [name])), logits(attach(params(), [method], KEY)))


def test_a_fully_trained_base_may_have_another_head():
    tree = attach(params(), [full(), TWO], KEY)
    trainable = flatten(partition(tree)[0])
    assert {path.rpartition("/default")[0] for path in trainable} == set(flatten(params()))
    assert trainable["head/kernel/default/value"].shape == (TINY.width, 2)
    with pytest.raises(ValueError, match="full\\(\\) would train .* under Trained; attach it first"):
        attach(params(), [TWO, full()], KEY)


def test_merged_it_is_a_base_with_that_head():
    merged = merge(attach(params(BARE), [TWO], KEY))
    assert isinstance(merged["head"]["kernel"], jax.Array)
    np.testing.assert_allclose(logits(merged, BARE), logits(attach(params(BARE), [TWO], KEY), BARE), atol=1e-6)


def test_head_only_trains_the_bases_own_head():
    tree = attach(params(), [head_only()], KEY)
    trained = {path.rpartition("/default")[0] for path in flatten(partition(tree)[0])}
    assert trained == {"pool/kernel", "pool/bias", "head/kernel", "head/bias"}
    np.testing.assert_array_equal(logits(tree), logits(params()))
    with pytest.raises(ValueError, match="head_only\\(\\) matches nothing"):
        attach(params(BARE), [head_only()], KEY)


def test_it_is_data():
    assert from_data(to_data(TWO)) == TWO
    assert classifier(labels=3).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_refusals():
    with pytest.raises(ValueError, match="needs an encoder"):
        attach(tiny.base(), [TWO], KEY)
    with pytest.raises(ValueError, match="has no labels"):
        attach(params(), [classifier()], KEY)
    with pytest.raises(ValueError, match="not all different: a"):
        classifier(labels=("a", "a"))
    with pytest.raises(ValueError, match="nothing to tell apart"):
        classifier(labels=("a",))
    adapted = attach(params(), [lora(rank=2, targets="head", name="low")], KEY)
    with pytest.raises(ValueError, match="would hide LoRA at head/kernel"):
        attach(adapted, [TWO], KEY)
