"""Merging into a quantised base: what is measured, and that nothing above the budget is given back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import base, equal_trees, moved

from peftjax.models.config import DecoderConfig
from peftjax.nn.kernels import dense, is_kernel
from peftjax.nn.quant import Scheme, quantise
from peftjax.nn.tree import flatten, get, put, walk
from peftjax.peft.attach import adapters, attach
from peftjax.peft.bottleneck import pfeiffer
from peftjax.peft.certificate import Budget, Certificate, Drift, certify
from peftjax.peft.lora import lora
from peftjax.peft.merge import dequantised, merge, merge_into, quantised_under
from peftjax.peft.parts import norm_only

CONFIG = DecoderConfig(vocab_size=40, width=64, layers=2, heads=4, kv_heads=2, head_size=16, ff=96, tied=True)
SCHEMES = (
    Scheme("affine4"), Scheme("affine4", symmetric=True), Scheme("nf4", block=32), Scheme("nf4", block=32, double=False),
    Scheme("int8"), Scheme("int8", block=32), Scheme("float8"),
)  # fmt: skip
KEY = jax.random.key(0)
IDS = np.random.default_rng(0).integers(0, 40, (2, 6)).astype(np.int32)
SAMPLE = [(IDS, np.arange(6)[None] < np.array([[6], [4]]))]  # the second row ends early
ANY = Budget(kl=None)


def held(scheme: Scheme | str = "affine4") -> dict:
    """The tiny base with every kernel and the embedding quantised."""
    params = base(CONFIG)
    for path, value in list(walk(params)):
        if path.endswith(("kernel", "embedding")):
            params = put(params, path, quantise(value, scheme, rows=path.endswith("embedding")))
    return params


def logits(params, ids):
    return tiny.logits(params, CONFIG, ids)


def into(params, names=None, budget=ANY, **options):
    return merge_into(params, names, logits=logits, sample=SAMPLE, budget=budget, **options)


def adapted(params, size=0.1, targets="all-linear"):
    return moved(attach(params, [lora(rank=2, targets=targets)], KEY), size)


@pytest.mark.slow  # a program for each scheme: twenty-five seconds
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: " ".join(map(str, dataclasses.astuple(s))))
def test_an_adapter_of_zeros_merges_into_the_base_bit_for_bit_at_no_cost(scheme):
    params = attach(held(scheme), [lora(rank=2, targets=["q_proj", "embed_tokens"])], KEY)
    params = put(params, "embed/embedding", dataclasses.replace(get(params, "embed/embedding"), b=jnp.zeros((2, 64))))
    merged, certificate = into(params, budget=Budget(kl=0.0, max_logit=0.0))
    equal_trees(merged, held(scheme))
    assert jax.tree.structure(merged) == jax.tree.structure(held(scheme))
    assert (certificate.kl, certificate.max_logit, certificate.mean_logit, certificate.agreement) == (0, 0, 0, 1)
    assert set(certificate.kernels.values()) == {Drift(0, 0)} and len(certificate.kernels) == 2
    assert certificate.tokens == 10


def test_the_certificate_is_what_anybody_can_recompute():
    params = adapted(held())
    merged, certificate = into(params)
    p, q = (jax.nn.log_softmax(logits(tree, IDS), axis=-1)[SAMPLE[0][1]] for tree in (params, merged))
    changes = np.abs(logits(params, IDS) - logits(merged, IDS))[SAMPLE[0][1]]
    np.testing.assert_allclose(certificate.kl, jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1)), rtol=1e-2)
    np.testing.assert_allclose([certificate.max_logit, certificate.mean_logit], [changes.max(), changes.mean()], rtol=1e-5)
    assert certificate.agreement == np.mean(p.argmax(-1) == q.argmax(-1))
    exact, now = (get(tree, "blocks/mlp/down/kernel") for tree in (merge(params), merged))
    error = np.linalg.norm(dense(now) - exact)
    drift = certificate.kernels["blocks/mlp/down/kernel"]
    np.testing.assert_allclose(drift.weight, error / np.linalg.norm(exact), rtol=1e-4)
    np.testing.assert_allclose(drift.delta, error / np.linalg.norm(exact - dense(get(held(), "blocks/mlp/down/kernel"))), rtol=1e-4)
    assert json.loads(json.dumps(certificate.as_data()))["kernels"]["blocks/mlp/down/kernel"]["weight"] == drift.weight


def test_it_grows_with_what_is_merged():
    found = [into(adapted(held(), size))[1] for size in (0.02, 0.1, 0.5)]
    assert 0 < found[0].kl < found[1].kl < found[2].kl
    assert 0 < found[0].kernels["blocks/attn/q/kernel"].weight <= found[2].kernels["blocks/attn/q/kernel"].weight * 1.5


def test_eight_bits_cost_less_than_four():
    costs = [into(adapted(held(scheme)))[1].kl for scheme in ("affine4", "int8")]
    assert costs[1] < 0.1 * costs[0]


@pytest.mark.parametrize(("budget", "words"), [
    (Budget(kl=1e-9), "KL .* is above the budget of 1e-09. Measured: KL"),
    (Budget(kl=None, max_logit=1e-6), "the largest change of a logit .* is above the budget of 1e-06"),
])  # fmt: skip
def test_above_the_budget_it_is_refused_and_nothing_is_touched(budget, words):
    params = adapted(held())
    leaves = dict(flatten(params))
    with pytest.raises(ValueError, match=words + ".*Keep the adapter unmerged, merge into dense weights"):
        into(params, budget=budget)
    assert all(leaf is leaves[path] for path, leaf in flatten(params).items())


def test_what_is_not_a_number_is_above_every_budget():
    with pytest.raises(ValueError, match="KL nan is above the budget"):
        Budget().require(Certificate({}, 1, 0.0, 0.0, float("nan"), 1.0))


def test_only_what_was_adapted_is_quantised_again():
    params = adapted(held(), targets=["q_proj", "embed_tokens"])
    merged, certificate = into(params)
    assert list(certificate.kernels) == ["blocks/attn/q/kernel", "embed/embedding"] and adapters(merged) == []
    assert get(merged, "blocks/attn/k/kernel") is get(params, "blocks/attn/k/kernel")
    assert get(merged, "embed/embedding").rows and not get(merged, "blocks/attn/q/kernel").rows


def test_an_adapted_head_tied_to_a_quantised_embedding_becomes_a_quantised_head():
    params = adapted(held("int8"), targets=["lm_head"])
    merged, certificate = into(params)
    head = get(merged, "head/kernel")
    assert is_kernel(head) and head.shape == (64, 40) and not head.rows and list(certificate.kernels) == ["head/kernel"]
    assert get(merged, "embed/embedding") is get(params, "embed/embedding")
    np.testing.assert_allclose(logits(merged, IDS), logits(params, IDS), atol=0.1)


def test_dense_weights_stay_dense_beside():
    params = put(held(), "blocks/attn/v/kernel", get(base(CONFIG), "blocks/attn/v/kernel"))
    params = moved(attach(params, [lora(rank=2), norm_only()], KEY))
    merged, certificate = into(params)
    np.testing.assert_array_equal(get(merged, "blocks/attn/v/kernel"), get(merge(params), "blocks/attn/v/kernel"))
    assert "blocks/attn/v/kernel" not in certificate.kernels and not is_kernel(get(merged, "final_norm/scale"))


def test_merging_densely_leaves_the_rest_quantised_until_that_is_asked_for():
    params = adapted(held(), targets="q_proj")
    plain = dequantised(merge(params))
    assert not any(is_kernel(value) for _, value in walk(plain))
    np.testing.assert_allclose(logits(plain, IDS), logits(params, IDS), atol=1e-4)
    assert get(dequantised(params), "blocks/attn/q/kernel") is get(params, "blocks/attn/q/kernel")


def test_a_dense_base_and_a_network_at_a_site_are_refused():
    with pytest.raises(ValueError, match="none of these adapters stands on a quantised weight; merge"):
        into(adapted(base(CONFIG)))
    params = attach(adapted(held()), [pfeiffer(size=3, name="net")], KEY)
    with pytest.raises(TypeError, match="blocks/mlp_out/net: a network at a site"):
        into(params)
    merged, _ = into(moved(params), strict=False)
    assert adapters(merged) == ["net"]


def test_a_sample_without_tokens_is_refused():
    with pytest.raises(ValueError, match="needs a sample of text"):
        certify({}, held(), held(), logits, [(IDS, np.zeros((2, 6), bool))])


def test_it_is_said_in_words():
    certificate = Certificate({"a": Drift(0.1, 0.25), "b": Drift(0.2, 0.5)}, 100, 2.0, 0.25, 0.0125, 0.975)
    assert str(certificate) == (
        "KL 0.0125 nats a token, logits change by 0.25 on average and 2 at most, 97.5 % of likeliest tokens stay, on 100 tokens; "
        "50 % of the change at b is lost in rounding, the most"
    )


def test_the_quantised_weight_is_found_under_several_adapters():
    params = attach(held(), [lora(rank=2, targets="q_proj", name="one"), lora(rank=3, targets="q_proj", name="two")], KEY)
    assert quantised_under(get(params, "blocks/attn/q/kernel")).shape == (2, 64, 64)
    assert quantised_under(get(base(CONFIG), "blocks/attn/q/kernel")) is None
