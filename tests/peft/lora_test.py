"""The LoRA node is the product it stands for, on kernels, embeddings and tied heads; ranks, scales, inits hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TIED, TINY, base, logits, moved, train

from peftjax.nn.kernels import attend, dot, lookup
from peftjax.nn.tree import flatten, get, put
from peftjax.peft.attach import attach, detach
from peftjax.peft.lora import LoRA, lora
from peftjax.peft.merge import merge

KEY = jax.random.key(0)
W = jax.random.normal(jax.random.key(1), (4, 6))
X = jax.random.normal(jax.random.key(2), (2, 3, 4))
NODE = LoRA(
    W, jax.random.normal(KEY, (2, 4)), jax.random.normal(jax.random.key(3), (2, 6)), jnp.float32(0.7), None, "tone"
)


def node_at(params, path) -> LoRA:
    return get(params, f"{path}/kernel" if path != "embed" else "embed/embedding")


@pytest.mark.parametrize("kernel", [NODE, dataclasses.replace(NODE, base=NODE, name="task")], ids=["one", "two"])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_reading_the_node_is_reading_the_merged_weight(kernel, wrap):
    merged, ids = kernel.merge(), jnp.array([[3, 0, 1]])
    y = dot(X, W)
    assert kernel.shape == W.shape and kernel.dtype == W.dtype
    np.testing.assert_allclose(wrap(dot)(X, kernel), dot(X, merged), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(wrap(attend)(y, kernel), attend(y, merged), rtol=1e-5, atol=1e-4)
    read = wrap(lambda i, k: lookup(i, k, jnp.float32))
    np.testing.assert_allclose(read(ids, kernel), lookup(ids, merged, jnp.float32), rtol=1e-5, atol=1e-5)


def test_the_merged_weight_is_the_formula():
    want = np.asarray(W) + 0.7 * np.asarray(NODE.a).T @ np.asarray(NODE.b)
    np.testing.assert_allclose(NODE.merge(), want, rtol=1e-5)


def test_a_merged_weight_keeps_the_dtype_of_its_base():
    half = dataclasses.replace(NODE, base=W.astype(jnp.bfloat16))
    assert half.merge().dtype == jnp.bfloat16 and half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.merge().astype(jnp.float32), NODE.merge(), rtol=0.02, atol=0.02)
    assert dot(X.astype(jnp.bfloat16), half).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"rank": 4}, 1), ({"rank": 4, "alpha": 8}, 2), ({"rank": 4, "alpha": 8, "rslora": True}, 4),
        ({"rank": 4, "rslora": True}, 2), ({"rank": 4, "alpha": 0.0}, 0),
        ({"rank": 4, "rank_pattern": {"q_proj": 2}, "alpha": 8}, 4),
        ({"rank": 4, "rank_pattern": {"q_proj": 2}}, 1),
        ({"rank": 4, "alpha": 8, "alpha_pattern": {".*/q": 16}}, 4),
    ],
)  # fmt: skip
def test_scales(options, scale):
    params = attach(base(), [lora(targets="q_proj", **options)], KEY)
    np.testing.assert_allclose(node_at(params, "blocks/attn/q").scale, [scale] * 2, rtol=1e-6)


def test_ranks_and_alphas_may_differ_between_layers():
    method = lora(rank=2, alpha=8, rank_pattern={"blocks/1/attn/q": 4}, alpha_pattern={"blocks/0/attn/v": 2})
    params = attach(base(), [method], KEY)
    q, v = node_at(params, "blocks/attn/q"), node_at(params, "blocks/attn/v")
    assert q.a.shape == (2, 4, 16) and v.a.shape == (2, 2, 16)
    np.testing.assert_allclose(q.scale, [4, 2])
    np.testing.assert_allclose(v.scale, [1, 4])
    assert q.a[1].all() and q.a[0, :2].all() and not q.a[0, 2:].any()


def test_padded_rows_stay_exactly_zero_through_training_with_weight_decay():
    method = lora(
        rank=2, rank_pattern={"blocks/1/attn/v": 1, "blocks/1/.*": 4}, targets=["q_proj", "v_proj", "down_proj"]
    )
    state, _, _ = train(attach(base(), [method], KEY), steps=4)
    for path, (short, long) in {"blocks/attn/q": (2, 4), "blocks/attn/v": (1, 2), "blocks/mlp/down": (2, 4)}.items():
        node = node_at(state.trainable, path)
        layer = 1 if path == "blocks/attn/v" else 0
        for factor in (node.a, node.b):
            assert factor.shape[1] == long and not factor[layer, short:].any(), path
            assert factor[layer, :short].any(axis=-1).all() and factor[1 - layer].any(axis=-1).all(), path


def test_a_layers_values_do_not_depend_on_the_ranks_of_others():
    plain = attach(base(), [lora(rank=2)], KEY)
    mixed = attach(base(), [lora(rank=2, rank_pattern={"blocks/1/attn/q": 4})], KEY)
    np.testing.assert_array_equal(node_at(mixed, "blocks/attn/q").a[0, :2], node_at(plain, "blocks/attn/q").a[0])
    np.testing.assert_array_equal(node_at(mixed, "blocks/attn/q").a[1, :2], node_at(plain, "blocks/attn/q").a[1])


def test_inits_are_as_documented():
    wide = put(base(), "blocks/attn/q/kernel", jnp.zeros((2, 400, 300)))
    kaiming, gaussian, orthogonal = (
        node_at(attach(wide, [lora(rank=4, targets="q_proj", init=init)], KEY), "blocks/attn/q")
        for init in ("kaiming", "gaussian", "orthogonal")
    )
    assert not kaiming.b.any() and not gaussian.b.any()
    assert np.abs(kaiming.a).max() <= 400**-0.5 and abs(np.std(kaiming.a) - 400**-0.5 / 3**0.5) < 2e-3
    assert abs(np.std(gaussian.a) - 0.25) < 0.01
    assert orthogonal.a.any() and orthogonal.b.any()
    assert np.abs(jnp.einsum("lri,lro->lio", orthogonal.a, orthogonal.b)).max() < 1e-8
    assert np.linalg.matrix_rank(orthogonal.a[0]) == 2 == np.linalg.matrix_rank(orthogonal.b[0])


def test_on_an_embedding_a_is_zero_and_b_is_not():
    node = node_at(attach(base(), [lora(rank=2, targets="embed_tokens")], KEY), "embed")
    assert node.a.shape == (2, 40) and node.b.shape == (2, 16) and node.scale.shape == ()
    assert not node.a.any() and 0.6 < np.std(node.b) < 1.4


def test_a_lora_on_the_head_of_a_tied_base_leaves_the_embedding_alone():
    params = moved(attach(base(TIED), [lora(rank=2, targets="lm_head")], KEY))
    assert params["embed"]["embedding"] is base(TIED)["embed"]["embedding"]
    node, table = params["head"]["kernel"], base(TIED)["embed"]["embedding"]
    np.testing.assert_allclose(node.merge(), table.T + node.a.T @ node.b, rtol=1e-5, atol=1e-6)
    untied = {**base(TIED), "head": {"kernel": node.merge()}}
    np.testing.assert_allclose(logits(params, TIED), logits(untied), rtol=1e-4, atol=1e-5)
    assert np.abs(logits(params, TIED) - logits(base(TIED), TIED)).max() > 1e-2


def test_a_lora_on_the_embedding_of_a_tied_base_is_followed_by_the_head():
    params = moved(attach(base(TIED), [lora(rank=2, targets="embed_tokens")], KEY))
    table = params["embed"]["embedding"].merge()
    both = {**base(), **base(TIED), "embed": {"embedding": table}, "head": {"kernel": table.T}}
    np.testing.assert_allclose(logits(params, TIED), logits(both), rtol=1e-4, atol=1e-4)


def test_a_lora_on_the_embedding_leaves_a_tied_head_alone_where_it_is_told_to():
    params = moved(attach(base(TIED), [lora(rank=2, targets="embed_tokens", ensure_weight_tying=False)], KEY))
    head = base(TIED)["embed"]["embedding"].T
    apart = {**base(), **base(TIED), "embed": {"embedding": params["embed"]["embedding"].merge()}, "head": {"kernel": head}}
    np.testing.assert_allclose(logits(params, TIED), logits(apart), rtol=1e-4, atol=1e-4)
    alone = attach(base(), [lora(rank=2, targets="embed_tokens", ensure_weight_tying=False)], KEY)
    assert set(flatten(alone)) - set(flatten(base())) == {f"embed/embedding/default/{leaf}" for leaf in ("a", "b", "scale")}


def test_a_bias_behind_b_is_scaled_like_it_and_only_on_linear_kernels():
    node = dataclasses.replace(NODE, bias=jnp.arange(6.0))
    bare = dot(X, NODE)
    np.testing.assert_allclose(dot(X, node), bare + 0.7 * jnp.broadcast_to(node.bias, bare.shape), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(node.merged_bias(), 0.7 * node.bias, rtol=1e-6)
    twice = dataclasses.replace(node, base=node, name="task")
    np.testing.assert_allclose(twice.merged_bias(), 1.4 * node.bias, rtol=1e-6)
    assert NODE.merged_bias() is None and dot(X.astype(jnp.bfloat16), node).dtype == jnp.bfloat16
    params = attach(base(), [lora(rank=2, targets=["v_proj", "embed_tokens"], lora_bias=True)], KEY)
    assert node_at(params, "embed").bias is None
    assert node_at(params, "blocks/attn/v").bias.shape == (2, 12) and not node_at(params, "blocks/attn/v").bias.any()


def test_on_both_each_has_its_own_whatever_came_first():
    embedding, head = lora(rank=2, targets="embed_tokens", name="in"), lora(rank=2, targets=["head"], name="out")
    one, other = (moved(attach(base(TIED), order, KEY)) for order in ([embedding, head], [head, embedding]))
    assert set(flatten(one)) == set(flatten(other))
    np.testing.assert_array_equal(logits(one, TIED), logits(other, TIED))
    together = attach(base(TIED), [lora(rank=2, targets=["embed_tokens", "lm_head"])], KEY)
    assert len([path for path in flatten(together) if path.endswith(("/a", "/b"))]) == 4
    assert set(detach(one, ["out"])) == set(base(TIED))


def test_attaching_leaves_its_input_alone_and_shares_its_arrays():
    before = dict(flatten(base()))
    params = attach(base(), [lora(rank=2)], KEY)
    assert dict(flatten(base())) == before
    assert node_at(params, "blocks/attn/q").base is base()["blocks"]["attn"]["q"]["kernel"]


def test_no_leaf_is_weakly_typed_and_all_are_float32():
    for path, leaf in flatten(attach(base(), [lora(rank=2, dropout=0.1, targets=".*")], KEY)).items():
        assert leaf.dtype == jnp.float32 and not leaf.weak_type, path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "LoRA rank 0 is not positive"),
        ({"rank_pattern": {"q_proj": -1}}, "LoRA rank -1 is not positive"),
        ({"rank": 3, "init": "orthogonal"}, "rank 3 is odd"),
        ({"init": "zeros"}, "LoRA init 'zeros' is none of kaiming, gaussian, orthogonal"),
        ({"dropout": 1.0}, r"LoRA dropout 1.0 is not in \[0, 1\)"),
    ],
)
def test_wrong_hyper_parameters_are_refused_when_stated(options, message):
    with pytest.raises(ValueError, match=message):
        lora(**options)


def test_patterns_that_name_nothing_and_mixed_orthogonal_ranks_are_refused():
    for what in ("rank_pattern", "alpha_pattern"):
        with pytest.raises(ValueError, match=f"{what} 'k_proj' matches none of the targets blocks/attn/q"):
            attach(base(), [lora(targets="q_proj", **{what: {"k_proj": 2}})], KEY)
    mixed = lora(rank=2, init="orthogonal", rank_pattern={"blocks/1/attn/q": 4})
    with pytest.raises(ValueError, match=r"needs one rank in a scanned stack; blocks/attn/q/kernel has \[2, 4\]"):
        attach(base(), [mixed], KEY)


def test_merging_a_whole_stack_is_merging_its_layers():
    node = node_at(moved(attach(base(), [lora(rank=2, alpha=3)], KEY)), "blocks/mlp/down")
    merged = merge({"kernel": node})["kernel"]
    for layer in range(TINY.layers):
        one = jax.tree.map(lambda x, i=layer: x[i], node)
        np.testing.assert_allclose(merged[layer], one.merge(), rtol=1e-6)
