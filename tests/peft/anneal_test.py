"""An activation fades to the identity, and what is linear merges into the weight before it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BIASED, TINY, base, logits, moved, run, tokens

from peftjax.models.decoder import Decoder
from peftjax.nn.quant import Scheme, quantise
from peftjax.nn.tree import flatten, get, put
from peftjax.peft.anneal import anneal, behind_kernels
from peftjax.peft.attach import attach
from peftjax.peft.bottleneck import bottleneck, houlsby, parallel, pfeiffer
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.partition import combine, partition

KEY = jax.random.key(0)
LINEAR = bottleneck(size=3, sites=("attn_out", "mlp_out"), reads="output", activation="linear")


def test_the_activation_is_mixed_with_the_identity():
    params = moved(attach(base(), [houlsby(size=3, anneal=True)], KEY))
    u = np.asarray(jax.random.normal(KEY, (2, 3, 16)))

    def change(t, activation="swish"):
        entry = get(anneal(params, t), "blocks/mlp_out/default")
        return dataclasses.replace(jax.tree.map(lambda leaf: leaf[1], entry), activation=activation)(u) - u

    np.testing.assert_array_equal(change(0.0), dataclasses.replace(get_one(params), annealed=None)(u) - u)
    np.testing.assert_allclose(change(0.3), 0.7 * change(0.0) + 0.3 * change(0.0, "linear"), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(change(1.0), change(1.0, "linear"))


def get_one(params):
    return jax.tree.map(lambda leaf: leaf[1], get(params, "blocks/mlp_out/default"))


def test_it_is_annealed_in_the_frozen_half_without_compiling_again():
    model, params = Decoder(TINY), moved(attach(base(), [houlsby(size=3, anneal=True)], KEY))
    trainable, frozen = partition(params)
    assert "blocks/mlp_out/default/annealed" in flatten(frozen)
    compiled = jax.jit(lambda frozen, t: model.apply({"params": combine(trainable, anneal(frozen, t))}, tokens()))
    for t in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(compiled(frozen, t), run(anneal(params, t), tokens(), model), rtol=1e-4, atol=1e-5)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("config", [TINY, BIASED], ids=["no biases", "biases"])
def test_what_is_linear_merges_exactly(config):
    params = anneal(moved(attach(base(config), [houlsby(size=3, anneal=True, scale="channel")], KEY)), 1.0)
    merged = merge(params)
    assert all(isinstance(leaf, jax.Array) for leaf in flatten(merged).values()) and "attn_out" not in merged["blocks"]
    np.testing.assert_allclose(logits(merged, config), logits(params, config), rtol=1e-4, atol=1e-5)


def test_it_merges_over_another_adapter_and_into_a_quantised_weight():
    quantised = put(base(), "blocks/mlp/down/kernel", quantise(get(base(), "blocks/mlp/down/kernel"), Scheme("int8")))
    params = moved(attach(quantised, [LINEAR, lora(rank=2, name="tone")], KEY))
    np.testing.assert_allclose(logits(merge(params)), logits(params), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits(behind_kernels(params)[0]), logits(params), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        ([houlsby(size=3)], "its activation is swish: a network is no matrix; attach it with anneal=True and anneal it to 1"),
        ([houlsby(size=3, anneal=True)], "its swish is annealed to 0, not to 1"),
        ([pfeiffer(size=3, activation="linear")], "it reads 'sum', which is not the product of the weight before it"),
        ([parallel(size=3, activation="linear")], "it reads 'residual'"),
        ([dataclasses.replace(LINEAR, norm="before")], "it has a norm, which is not linear"),
        ([dataclasses.replace(LINEAR, gate="token")], "it has a gate"),
        ([dataclasses.replace(LINEAR, sites=("block_out",))], "no weight's product is what passes at block_out"),
        ([houlsby(size=3, name="a"), dataclasses.replace(LINEAR, name="b")], "a stays between it and the weight"),
    ],
)
def test_what_stands_in_the_way_of_merging_is_said(methods, reason):
    with pytest.raises(TypeError, match=reason):
        merge(attach(base(), methods, KEY))


def test_the_others_stay_where_they_are_asked_to():
    params = moved(attach(base(), [dataclasses.replace(LINEAR, name="a"), houlsby(size=3, name="b")], KEY))
    merged = merge(params, strict=False)
    assert sorted(merged["blocks"]["mlp_out"]) == ["b"]
    np.testing.assert_allclose(logits(merged), logits(params), rtol=1e-3, atol=1e-4)


def test_a_norm_behind_the_weight_and_a_traced_degree_are_in_the_way():
    params = attach(base(), [LINEAR], KEY)
    normed = put(params, "blocks/attn_post_norm/scale", jnp.ones((2, 16)))
    assert behind_kernels(normed)[1] == {"blocks/attn_out/default": "a norm stands between it and the weight"}
    abstract = attach(base(), [houlsby(size=3, anneal=True)], KEY)
    with pytest.raises(TypeError, match="is not known while tracing"):
        jax.eval_shape(merge, abstract)


def test_nothing_to_anneal_is_an_error():
    with pytest.raises(ValueError, match="nothing to anneal: no bottleneck was attached with anneal=True"):
        anneal(attach(base(), [houlsby(size=3)], KEY), 0.5)
    with pytest.raises(ValueError, match="nothing of tone to anneal"):
        anneal(attach(base(), [houlsby(size=3, anneal=True)], KEY), 0.5, names=["default", "tone"])
