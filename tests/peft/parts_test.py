"""Training pieces of the base: a trained copy beside the frozen original, and the right pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_encoder
from tiny import BIASED, TIED, TINY, base, equal_trees, logits, moved

from peftjax.nn.kernels import attend, dense, dot, lookup
from peftjax.nn.tree import flatten, get, put
from peftjax.peft.attach import attach, detach
from peftjax.peft.lora import lora
from peftjax.peft.partition import partition
from peftjax.peft.parts import Trained, bitfit, full, head_only, norm_only

KEY = jax.random.key(0)
W, V = jax.random.normal(jax.random.key(1), (2, 4, 6))


def trained(params):
    """Paths of the frozen originals of everything that is trained."""
    return sorted(path.rpartition("/default")[0] for path in flatten(partition(params)[0]))


def test_the_node_reads_its_own_value_and_not_the_base():
    node, x, ids = Trained(W, V, "tone"), jnp.ones((2, 4)), jnp.array([1, 2])
    np.testing.assert_array_equal(dot(x, node), dot(x, V))
    np.testing.assert_array_equal(attend(dot(x, W), node), attend(dot(x, W), V))
    np.testing.assert_array_equal(lookup(ids, node, jnp.float32), V[ids])
    np.testing.assert_array_equal(dense(node), V)
    assert node.shape == (4, 6) and Trained(None, V, "tone").dtype == V.dtype


def test_the_master_is_float32_and_the_merged_weight_of_the_bases_dtype():
    half = {"q": {"kernel": W.astype(jnp.bfloat16)}}
    node = get(attach(half, [full()], KEY), "q/kernel")
    assert node.value.dtype == jnp.float32 and node.merge().dtype == jnp.bfloat16
    np.testing.assert_array_equal(node.merge(), half["q"]["kernel"])


def test_the_trained_value_is_a_copy_in_a_buffer_of_its_own():
    node = get(attach(base(), [full()], KEY), "blocks/attn/q/kernel")
    assert node.base is base()["blocks"]["attn"]["q"]["kernel"]
    assert node.value.unsafe_buffer_pointer() != node.base.unsafe_buffer_pointer()


@pytest.mark.parametrize("config", [TINY, TIED, BIASED], ids=["plain", "tied", "biased"])
def test_full_trains_every_parameter(config):
    assert trained(attach(base(config), [full()], KEY)) == list(flatten(base(config)))


def test_the_others_train_what_they_are_called():
    norms = ["blocks/attn_norm/scale", "blocks/mlp_norm/scale", "final_norm/scale"]
    assert trained(attach(base(BIASED), [norm_only()], KEY)) == norms
    biases = [path for path in flatten(base(BIASED)) if path.endswith("/bias")]
    assert trained(attach(base(BIASED), [bitfit()], KEY)) == biases
    assert trained(attach(base(), [bitfit(add=True)], KEY)) == biases
    assert trained(attach(base(BIASED), [bitfit(targets=["q_proj", "up_proj"])], KEY)) == [
        "blocks/attn/q/bias",
        "blocks/mlp/up/bias",
    ]
    assert trained(attach(base(), [head_only()], KEY)) == ["head/kernel"]


def test_chosen_modules_are_trained_with_all_that_is_theirs():
    paths = ["blocks/attn/q/bias", "blocks/attn/q/kernel", "embed/embedding"]
    assert trained(attach(base(BIASED), [full(targets=["q_proj", "embed_tokens"])], KEY)) == paths
    assert trained(attach(base(), [full(targets="blocks/.*_norm")], KEY)) == ["blocks/attn_norm/scale", "blocks/mlp_norm/scale"]
    with pytest.raises(ValueError, match="'q_prj' matches no kernel; did you mean 'q_proj'"):
        attach(base(), [full(targets=["q_prj"])], KEY)


@pytest.mark.parametrize(("follows", "targets"), [(True, "embed_tokens"), (False, "embed_tokens"), (False, "lm_head")])
def test_a_saved_embedding_takes_a_tied_head_with_it_or_not(follows, targets):
    params = moved(attach(base(TIED), [full(targets=targets, ensure_weight_tying=follows)], KEY))
    old, new = base(TIED)["embed"]["embedding"], get(params, "embed/embedding" if targets == "embed_tokens" else "head/kernel").value
    table, head = (new, new.T if follows else old.T) if targets == "embed_tokens" else (old, new)
    both = {**base(), **base(TIED), "embed": {"embedding": table}, "head": {"kernel": head}}
    np.testing.assert_allclose(logits(params, TIED), logits(both), rtol=1e-4, atol=1e-4)
    equal_trees(detach(params), base(TIED))


def test_every_bias_is_that_of_norms_too():
    params = tiny_encoder.params()
    biases = [path for path in flatten(params) if path.endswith("/bias")]
    assert {"blocks/attn_norm/bias", "blocks/attn/q/bias", "embed_norm/bias"} <= set(biases)
    assert trained(attach(params, [bitfit(targets="all")], KEY)) == biases
    assert len(trained(attach(params, [bitfit()], KEY))) < len(biases)
    with pytest.raises(ValueError, match=r"bitfit\(\) matches nothing in this base"):
        attach(base(), [bitfit(targets="all")], KEY)


def test_layers_may_be_chosen_in_a_cut_stack():
    cut = base(BIASED, (1, 1))
    assert all(path.startswith("blocks_1_2/") for path in trained(attach(cut, [full(layers=[1])], KEY)))
    assert len(trained(attach(cut, [norm_only(layers=[1])], KEY))) == 2
    assert len(trained(attach(cut, [bitfit(layers=[1])], KEY))) == 7


def test_bitfit_adds_zeros_only_where_there_is_nothing():
    params = put(base(), "blocks/attn/q/bias", jnp.ones((2, 24)))
    with pytest.raises(ValueError, match="did you mean|matches no kernel"):
        attach(params, [bitfit(targets="q_prj")], KEY)
    added = attach(params, [bitfit(add=True, targets=["q_proj", "k_proj"])], KEY)
    assert get(added, "blocks/attn/q/bias").value.all() and get(added, "blocks/attn/q/bias").base is not None
    assert not get(added, "blocks/attn/k/bias").value.any() and get(added, "blocks/attn/k/bias").base is None
    equal_trees(detach(added), params)


def test_a_tied_head_is_trained_apart_from_the_embedding():
    params = moved(attach(base(TIED), [head_only()], KEY))
    table = base(TIED)["embed"]["embedding"]
    assert params["embed"]["embedding"] is table
    untied = {**base(TIED), "head": {"kernel": params["head"]["kernel"].value}}
    np.testing.assert_allclose(logits(params, TIED), logits(untied), rtol=1e-4, atol=1e-5)
    assert set(detach(params)) == set(base(TIED))


def test_a_lora_may_stand_on_what_is_trained_and_not_beneath():
    params = attach(base(), [full(name="all"), lora(rank=2)], KEY)
    assert isinstance(get(params, "blocks/attn/q/kernel").base, Trained)
    equal_trees(detach(params, ["all"]), attach(base(), [lora(rank=2)], KEY))
    with pytest.raises(ValueError, match=r"full\(\) would train blocks/attn/k/kernel under LoRA; attach it first"):
        attach(base(), [lora(rank=2), full(name="all")], KEY)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (bitfit(), r"bitfit\(\) matches nothing: this base has no biases; bitfit\(add=True\)"),
        (full(layers=[1]), "part of the scanned stack blocks"),
        (norm_only(layers=[9]), r"\[9\] not among layers 0 to 1"),
    ],
)
def test_a_method_that_trains_nothing_is_refused(method, message):
    with pytest.raises(ValueError, match=message):
        attach(base(), [method], KEY)


def test_a_base_without_norms_says_what_it_holds():
    with pytest.raises(ValueError, match=r"norm_only\(\) matches nothing in this base: it holds q/kernel"):
        attach({"q": {"kernel": W}}, [norm_only()], KEY)
