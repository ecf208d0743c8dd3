"""Merging gives a plain tree that computes the same, and never touches its input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BIASED, TIED, TINY, base, equal_trees, logits, moved

from peftjax.nn.kernels import Kernel
from peftjax.nn.tree import flatten, get, put, walk
from peftjax.peft.attach import adapters, attach
from peftjax.peft.bottleneck import pfeiffer
from peftjax.peft.lora import LoRA, lora
from peftjax.peft.merge import merge
from peftjax.peft.parts import bitfit, norm_only

KEY = jax.random.key(0)
LOW = (
    lora(rank=2, alpha=3, name="tone"),
    lora(rank=3, targets=["q_proj", "lm_head"], name="task"),
    bitfit(add=True, name="bias"),
)


def low():
    return moved(attach(base(TIED), LOW, KEY))


def test_the_merged_tree_is_plain_and_computes_the_same():
    merged = merge(low())
    assert not any(isinstance(value, Kernel) for _, value in walk(merged)) and adapters(merged) == []
    np.testing.assert_allclose(logits(merged, TIED), logits(low(), TIED), rtol=1e-4, atol=1e-4)


def test_the_input_is_not_touched():
    params = low()
    before = dict(flatten(params))
    merge(params)
    after = flatten(params)
    assert after.keys() == before.keys() and all(after[path] is before[path] for path in before)


def test_merging_one_is_merging_it_alone():
    alone = moved(attach(base(TIED), LOW[1:2], KEY))
    equal_trees(merge(low(), ["task"]), merge(alone))
    equal_trees(merge(low(), []), base(TIED))


def test_two_adapters_merge_into_the_sum_of_their_deltas():
    kernel = base(TIED)["blocks"]["attn"]["q"]["kernel"]

    def delta(names):
        return merge(low(), names)["blocks"]["attn"]["q"]["kernel"] - kernel

    np.testing.assert_allclose(delta(["tone", "task"]), delta(["tone"]) + delta(["task"]), rtol=1e-4, atol=1e-5)


def test_an_adapter_that_is_zero_merges_into_the_base_exactly():
    equal_trees(merge(attach(base(), [lora(rank=2), norm_only()], KEY)), base())


def test_a_merged_tied_head_is_a_head_of_its_own():
    merged = merge(moved(attach(base(TIED), [lora(rank=2, targets="lm_head")], KEY)))
    assert merged["head"]["kernel"].shape == (16, 40)
    assert merged["embed"]["embedding"] is base(TIED)["embed"]["embedding"]


def test_an_embedding_apart_from_its_head_merges_into_two_tables():
    params = moved(attach(base(TIED), [lora(rank=2, targets="embed_tokens", ensure_weight_tying=False)], KEY))
    merged = merge(params)
    np.testing.assert_array_equal(merged["head"]["kernel"], base(TIED)["embed"]["embedding"].T)
    np.testing.assert_allclose(logits(merged, TIED), logits(params, TIED), rtol=1e-4, atol=1e-4)
    equal_trees(merge(params, []), base(TIED))


@pytest.mark.parametrize("config", [TINY, BIASED], ids=["no bias", "biased"])
def test_a_bias_behind_a_lora_goes_into_the_one_beside_the_kernel(config):
    methods = [lora(rank=2, alpha=3, lora_bias=True), lora(rank=1, targets="q_proj", lora_bias=True, name="task")]
    params = moved(attach(base(config), methods, KEY))
    merged, node = merge(params), get(params, "blocks/attn/q/kernel")
    np.testing.assert_allclose(logits(merged, config), logits(params, config), rtol=1e-4, atol=1e-4)
    own = node.scale[:, None] * node.bias + node.base.scale[:, None] * node.base.bias
    before = get(base(config), "blocks/attn/q/bias", jnp.zeros_like(own))
    np.testing.assert_allclose(get(merged, "blocks/attn/q/bias"), before + own, rtol=1e-5)
    assert get(merge(params, ["task"]), "blocks/attn/k/bias") is get(base(config), "blocks/attn/k/bias")


def test_a_bias_that_is_trained_itself_takes_a_loras_too():
    params = moved(attach(base(BIASED), [bitfit(name="bias"), lora(rank=2, lora_bias=True)], KEY))
    np.testing.assert_allclose(logits(merge(params), BIASED), logits(params, BIASED), rtol=1e-4, atol=1e-4)


def test_a_network_at_a_site_is_refused_or_kept_beside():
    params = moved(attach(base(), [lora(rank=2), pfeiffer(size=3)], KEY))
    with pytest.raises(
        TypeError, match=r"blocks/mlp_out/default: a network at a site has no dense weight.*strict=False"
    ):
        merge(params)
    kept = merge(params, strict=False)
    assert not isinstance(get(kept, "blocks/attn/q/kernel"), LoRA)
    assert get(kept, "blocks/mlp_out/default") is get(params, "blocks/mlp_out/default")
    np.testing.assert_allclose(logits(kept), logits(params), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("field", "found"), [("a", "kernel"), ("scale", "kernel"), ("bias", "bias")])
def test_a_number_that_is_not_finite_is_named_and_the_base_stays(field, found):
    """HF PEFT checks the weight and then the bias, and leaves earlier layers merged."""
    params = moved(attach(base(), [lora(rank=2, lora_bias=True, targets=["k_proj", "up_proj"])], KEY))
    node = get(params, "blocks/mlp/up/kernel")  # of the last layer, behind weights that are merged before it
    bad = put(params, "blocks/mlp/up/kernel", dataclasses.replace(node, **{field: getattr(node, field).at[1].set(jnp.nan)}))
    kept = dict(flatten(bad))
    with pytest.raises(ValueError, match=f"blocks/mlp/up/{found}: merged it holds numbers that are not finite; nothing was changed"):
        merge(bad)
    assert all(flatten(bad)[path] is leaf for path, leaf in kept.items())


def test_names_that_no_adapter_has_are_refused():
    with pytest.raises(ValueError, match="no adapter is called 'tune'; the tree holds bias, task, tone"):
        merge(low(), ["tune"])


def test_a_node_that_has_no_dense_form_is_named_with_its_path():
    class Opaque(Kernel):
        shape, dtype = (4, 6), jnp.float32

    node = LoRA(Opaque(), jnp.ones((2, 4)), jnp.ones((2, 6)), jnp.float32(1), None, "tone")
    with pytest.raises(TypeError, match="blocks/attn/q/kernel: Opaque cannot be merged into a dense weight"):
        merge(put(base(), "blocks/attn/q/kernel", node))
