"""AdapterFusion weighs what adapters do, at sites and in kernels; the value matrix is held near the identity.

That it computes what AdapterHub's does is proved where theirs is read (tests/interop/exchange/adapterhub_fusion_test.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import TINY, base, moved, train_batch

from peftjax.interop.exchange.adapter import extract, insert
from peftjax.models.decoder import Decoder
from peftjax.nn.kernels import dot
from peftjax.nn.tree import flatten, get, unflatten_like
from peftjax.peft.attach import activate, adapters, attach, detach
from peftjax.peft.bottleneck import houlsby, pfeiffer
from peftjax.peft.compose import compose, decompose
from peftjax.peft.composition import Fuse
from peftjax.peft.fusion import KernelFusion, fusion
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.partition import partition, size
from peftjax.peft.parts import head_only, norm_only
from peftjax.peft.penalty import penalty
from peftjax.peft.prefix import prefix
from peftjax.train.step import make_step, new_state

KEY = jax.random.key(0)


def layer(params, path):
    return jax.tree.map(lambda leaf: leaf[0], get(params, path))


def fused(*methods):
    params = moved(attach(base(), [*methods, fusion(of=("a", "b"), name="mix")], KEY), 0.3)
    return compose(params, Fuse("a", "b", by="mix"))


def test_outputs_of_low_rank_updates_are_weighed_by_attention():
    """As written in the paper: keys and values of each child."""
    children = lora(rank=2, targets="q_proj", name="a"), lora(rank=3, targets=["q_proj", "k_proj"], name="b")
    node = layer(fused(*children), "blocks/attn/q/kernel")
    mix, x = node.parts["mix"], jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, TINY.width)), jnp.float32)
    assert isinstance(mix, KernelFusion)
    y = x @ node.base
    changes = [node.parts[name].scale * x @ node.parts[name].a.T @ node.parts[name].b for name in "ab"]
    query = y @ mix.query + mix.query_bias[None, None]
    scores = jnp.stack([jnp.sum(query * (change @ mix.key), axis=-1) for change in changes])
    weights = jnp.exp(scores) / jnp.sum(jnp.exp(scores), axis=0, keepdims=True)
    want = y + sum(weight[..., None] * (change @ mix.value) for weight, change in zip(weights, changes, strict=True))
    np.testing.assert_allclose(dot(x, node), want, rtol=1e-4, atol=1e-5)
    low = dot(x.astype(jnp.bfloat16), node)
    assert low.dtype == jnp.bfloat16 and np.abs(low.astype(jnp.float32) - want).max() < 0.1


def test_a_child_that_has_nothing_there_changes_nothing_there():
    node = layer(fused(lora(rank=2, targets="q_proj", name="a"), lora(rank=3, targets="k_proj", name="b")), "blocks/attn/q/kernel")
    mix, x = node.parts["mix"], jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, TINY.width)), jnp.float32)
    change = dot(x, dataclasses.replace(node.parts["a"], base=node.base)) - x @ node.base
    want = x @ node.base + mix.mix(x @ node.base, [change, jnp.zeros_like(change)])
    np.testing.assert_allclose(dot(x, node), want, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_leaf_and_their_number_is_the_formula():
    params = fused(houlsby(size=3, name="a"), pfeiffer(size=2, name="b"))
    trainable, frozen = partition(params, ["mix"])
    assert size(trainable)[0] == 2 * TINY.layers * (3 * TINY.width**2 + TINY.width)  # at two sites; AdapterHub's key bias is not seen
    entry = layer(params, "blocks/mlp_out")
    x, residual = (jnp.asarray(np.random.default_rng(seed).standard_normal((2, 3, TINY.width)), jnp.float32) for seed in (0, 1))
    gradient = jax.grad(lambda entry: jnp.sum(jnp.sin(entry(x, residual=residual))))(entry)
    for path, leaf in flatten(gradient).items():
        if path.rpartition("/")[2] not in ("strength", "learned"):
            assert np.any(leaf), path


def test_the_penalty_is_the_distance_from_the_identity_and_a_step_adds_its_gradient_once():
    params = fused(lora(rank=2, targets="q_proj", name="a"), lora(rank=3, targets="q_proj", name="b"))
    value = get(params, "blocks/attn/q/kernel").parts["mix"].value
    far = value - jnp.broadcast_to(jnp.eye(value.shape[-1]), value.shape)
    np.testing.assert_allclose(penalty(params), 0.01 * jnp.sum(far**2), rtol=1e-5)
    assert penalty(detach(params)) is None
    trainable, frozen = partition(params, ["mix"])
    optimiser = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
    step = jax.jit(make_step(Decoder(TINY), optimiser, accumulate=2))
    path, after, losses = "blocks/attn/q/kernel/mix/strength", {}, []
    for strength in (0.0, 0.01):
        flat = flatten(frozen)
        rest = unflatten_like(frozen, {**flat, path: jnp.full_like(flat[path], strength)})
        state, metrics = step(new_state(trainable, optimiser, KEY), rest, train_batch(4))
        after[strength], _ = flatten(state.trainable), losses.append(float(metrics["loss"]))
    assert losses[0] == losses[1]
    for name, leaf in after[0.0].items():
        want = -0.02 * far if name.endswith("value") else np.zeros(leaf.shape)
        np.testing.assert_allclose(after[0.01][name] - leaf, want, rtol=1e-3, atol=1e-5, err_msg=name)


def test_it_is_stored_and_attached_again():
    methods = [lora(rank=2, targets="q_proj", name="a"), houlsby(size=2, name="b"), fusion(of=("a", "b"), name="mix")]
    params = moved(attach(base(), methods, KEY), 0.3)
    stored = extract(compose(params, Fuse("a", "b", by="mix")), methods, "mix")
    again = insert(detach(params, ["mix"]), stored, "mix")
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, flatten(again)[path], err_msg=path)
    assert not any("value" in path for path in flatten(attach(detach(params, ["mix"]), [fusion(of=("a", "b"), value=False)], KEY)))


def test_what_cannot_be_weighed_is_refused():
    params = attach(base(), [lora(rank=1, targets=["q_proj", "embed_tokens"], name="a"), norm_only(name="n"), prefix(name="p")], KEY)
    params = attach(params, [houlsby(size=2, name="b"), houlsby(size=2, name="c")], KEY)
    with pytest.raises(ValueError, match=r"fusion 'fusion' is of 'bb' \(did you mean 'b'\?\), which is not attached before it"):
        attach(params, [fusion(of=("b", "bb"))], KEY)
    with pytest.raises(ValueError, match="is of Prefix at blocks/attn/kv/p, where no outputs are weighed"):
        attach(activate(params, ["b", "p"]), [fusion(of=("b", "p"))], KEY)
    with pytest.raises(ValueError, match="is of LoRA at embed/embedding"):
        attach(params, [fusion(of=("a", "b"))], KEY)
    with pytest.raises(ValueError, match="of two adapters or more"):
        fusion(of=("a", "a"))
    with pytest.raises(TypeError, match="Fuse of a, b, mix is no one weight: attention weighs what they do token by token"):
        merge(fused(lora(rank=1, targets="q_proj", name="a"), lora(rank=1, targets="q_proj", name="b")))
    alone = attach(activate(params, ["b", "c"]), [fusion(of=("b", "c"))], KEY)
    with pytest.raises(TypeError, match=r"fusion 'fusion' weighs what other adapters do; compose\(params, Fuse"):
        layer(alone, "blocks/mlp_out/fusion")(jnp.zeros((1, 2, TINY.width)))


def test_a_head_that_is_the_fusions_own_stays():
    children = houlsby(size=2, name="a"), houlsby(size=2, name="b")
    params = attach(base(), [*children, fusion(of=("a", "b"), name="mix"), head_only(name="mix")], KEY)
    composed = compose(params, Fuse("a", "b", by="mix"))
    assert get(composed, "head/kernel").name == "mix" and adapters(decompose(composed)) == ["a", "b", "mix"]
