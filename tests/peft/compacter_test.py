"""Compacter's matrices are sums of Kronecker products with one rule for all layers and places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMOL, base, moved

from peftjax.models.decoder import abstract_params
from peftjax.nn.tree import flatten, get
from peftjax.peft.attach import attach
from peftjax.peft.compacter import compacter, compacter_plus_plus, times
from peftjax.peft.partition import partition, size
from peftjax.peft.roles import roles

KEY = jax.random.key(0)


def whole(rule, left, right):
    """Σ_k S_k ⊗ (A_kᵀ B_k)."""
    return sum(np.kron(s, a.T @ b) for s, a, b in zip(*map(np.asarray, (rule, left, right)), strict=True))


def test_the_product_is_that_of_the_written_out_matrix():
    rule, left, right, x = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(4, 4, 4), (4, 2, 5), (4, 2, 3), (2, 7, 20)])
    )
    np.testing.assert_allclose(times(x, rule, left, right), x @ whole(rule, left, right), rtol=1e-4, atol=1e-4)
    assert times(x.astype(jnp.bfloat16), rule, left, right).dtype == jnp.bfloat16


def test_the_entry_is_its_formula():
    params = moved(attach(base(), [compacter_plus_plus(size=8, rank=2)], KEY))
    rule = get(params, "shared/default/rule").value
    entry = jax.tree.map(lambda leaf: leaf[1], get(params, "blocks/mlp_out/default"))
    entry = type(entry)(**{**vars(entry), "rule": rule})
    u, r = np.asarray(jax.random.normal(KEY, (2, 3, 5, 16)))
    inner = jax.nn.gelu((r + u) @ whole(rule, entry.down_left, entry.down_right) + np.asarray(entry.down_bias), approximate=False)
    want = u + np.asarray(inner) @ whole(rule, entry.up_left, entry.up_right) + np.asarray(entry.up_bias)
    np.testing.assert_allclose(entry(u, residual=r), want, rtol=1e-4, atol=1e-5)


def test_the_rule_is_one_for_all_layers_and_places():
    params = attach(base(), [compacter(size=4)], KEY)
    assert [path for path in flatten(params) if "rule" in path] == ["shared/default/rule/value"]
    for learned in (True, False):
        trainable, _ = partition(attach(base(), [compacter(size=4, learn_rule=learned)], KEY))
        assert ("shared/default/rule/value" in flatten(trainable)) == learned
    assert get(params, "blocks/attn_out/default").rule == get(params, "blocks/mlp_out/default").rule
    assert flatten(roles(params))["shared/default/rule/value"] == "matrix"
    assert flatten(partition(params)[0])["shared/default/rule/value"].shape == (4, 4, 4)


@pytest.mark.parametrize(("method", "count"), [(compacter(size=72), 116_704), (compacter_plus_plus(reduction_factor=8), 58_384)])
def test_the_number_of_trainables_on_smollm2(method, count):
    params = jax.eval_shape(lambda p: attach(p, [method], KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reads": "input"}, "compacter reads 'input' is none of output"),
        ({"activation": "gelu_new"}, "compacter activation 'gelu_new' is none of"),
        ({"sites": ("mlp",)}, "no site is called 'mlp'"),
        ({"sites": ("embed_out",)}, "compacter with reads='output' has no place at embed_out"),
        ({"sites": ("block_out",), "reads": "sum"}, "compacter with reads='sum' has no place at block_out"),
        ({"rank": 0}, "rank 0"),
        ({"dropout": 1.0}, r"compacter dropout 1.0 is not in \[0, 1\)"),
    ],
)
def test_wrong_hyper_parameters_are_refused_when_stated(options, message):
    with pytest.raises(ValueError, match=message):
        compacter(**options)


def test_widths_that_the_dimension_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="compacter phm_dim 4 does not divide the width 16 and the size 6"):
        attach(base(), [compacter(size=6)], KEY)
