"""Every method on every kind of quantised kernel: a table of (method) x (node). A new method joins by a line of METHODS.

One program a pair serves all its laws. The row "mixed" holds each kernel as another kind, so that a method meets them all in one program;
the whole table, a kind at a time, is for the slow run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import adamw, base, equal_trees, moved, train_batch

from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder, cut
from peftjax.nn.kernels import Kernel, Tied, dense
from peftjax.nn.quant import Quantised, Scheme, quantise
from peftjax.nn.tree import flatten, get, put, walk
from peftjax.peft import spec
from peftjax.peft.across_layers import across_layers
from peftjax.peft.adalora import adalora
from peftjax.peft.attach import attach, detach
from peftjax.peft.boft import boft
from peftjax.peft.bottleneck import houlsby, parallel, pfeiffer
from peftjax.peft.checks import require_read
from peftjax.peft.compose import compose
from peftjax.peft.composition import Average, BatchSplit, Stack
from peftjax.peft.delora import delora
from peftjax.peft.dense_delta import dense_delta
from peftjax.peft.fourierft import fourierft
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.gralora import gralora
from peftjax.peft.hira import hira
from peftjax.peft.hra import hra
from peftjax.peft.ia3 import ia3
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.miss import miss
from peftjax.peft.oft import oft
from peftjax.peft.partition import combine, partition
from peftjax.peft.parts import bitfit, full, head_only, norm_only
from peftjax.peft.prefix import prefix
from peftjax.peft.prompt import prompt_tuning
from peftjax.peft.randlora import randlora
from peftjax.peft.road import road
from peftjax.peft.roles import roles
from peftjax.peft.shira import shira
from peftjax.peft.tokens import trainable_tokens
from peftjax.peft.vera import vera
from peftjax.train.step import make_step, new_state

KEY = jax.random.key(0)
CONFIG = DecoderConfig(vocab_size=40, width=64, layers=2, heads=4, kv_heads=2, head_size=16, ff=128, gated=False, tied=True)
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (3, 8)))
KINDS = {
    "affine4": Scheme("affine4"), "symmetric": Scheme("affine4", symmetric=True), "int8": Scheme("int8"), "nf4": Scheme("nf4"),
    "float8": Scheme("float8"),
}  # fmt: skip
METHODS = {
    "lora": (lora(rank=2, alpha=3, lora_bias=True),),
    "dora": (lora(rank=2, dora=True),),
    "lora on embedding and head": (lora(rank=2, targets=["embed_tokens", "lm_head", "q_proj"]),),
    "houlsby": (houlsby(size=3),),
    "pfeiffer and parallel": (pfeiffer(size=3), parallel(size=3, name="beside")),
    "biases and norms": (bitfit(add=True), norm_only(name="norms")),
    "tokens of both": (trainable_tokens(ids=(3, 7, 31), targets=["embed_tokens", "lm_head"]),),
    "head": (head_only(),),
    "deltas": (
        loha(rank=1, targets="q_proj", name="a"), lokr(rank=1, targets="k_proj", name="b"), hira(rank=2, targets="v_proj", name="c"),
        miss(rank=5, targets="o_proj", name="d"), shira(rank=2, targets="up_proj", name="e"), vera(rank=4, targets="down_proj", name="f"),
    ),
    "more deltas": (
        randlora(rank=5, alpha=5, targets="q_proj", name="a"), fourierft(frequencies=40, targets="k_proj", name="b"),
        gralora(rank=4, alpha=5, targets="v_proj", name="c"), delora(rank=2, strength=1, targets="o_proj", name="d"),
        miss(rank=4, form="bat", targets="up_proj", name="e"), shira(rank=1, mask="magnitude", targets="down_proj", name="f"),
    ),
    "low rank": (
        lora(rank=2, freeze_a=True, targets="q_proj", name="a"), adalora(rank=3, target_rank=2, targets="k_proj", name="b"),
        dense_delta(targets="v_proj", name="c"), gated_lora(rank=2, targets="o_proj", name="d"),
        across_layers(lora(rank=2, targets=["up_proj", "down_proj"], name="e")),
    ),
    "shifted": (lora(rank=2, init="pissa", targets="k_proj", name="b"), lora(rank=2, init="olora", targets="up_proj", name="d")),
    "context": (prompt_tuning(length=2, name="a"), prefix(length=2, name="b")),
    "composed": (
        lora(rank=2, name="a"), lora(rank=1, dora=True, targets=["q_proj", "up_proj"], name="b"),
        ia3(targets=["v_proj", "up_proj"], feedforward=(), name="c"), houlsby(size=2, name="d"),
    ),
    "transforms": (
        ia3(name="a"), oft(block_size=8, targets="q_proj", name="b"), boft(targets="o_proj", name="c"),
        hra(rank=2, targets="up_proj", name="d"), road(group=8, targets="v_proj", name="e"),
    ),
}
PLANS = {"composed": Stack(Average("a", "b"), BatchSplit("c", "d", sizes=(1, 2)))}
NO_IDENTITY = ("context",)  # virtual tokens change what is computed from the start
MIXED = {"q": "nf4", "k": "int8", "v": "float8", "o": "affine4", "up": "symmetric", "down": "nf4", "embed": "nf4"}
BESIDE_WEIGHTS = {"classifier", "compacter", "fusion", "invertible", "p_tuning", "reft"}
WEIGHTS_ANEW = {"full"}  # what is trained itself is dense
every_kind = pytest.mark.parametrize("kind", KINDS)
every_method = pytest.mark.parametrize("name", METHODS)


def test_every_method_on_weights_meets_them():
    found = {type(method).__name__ for row in METHODS.values() for method in row}
    assert found == set(spec.METHODS) - BESIDE_WEIGHTS - WEIGHTS_ANEW


@functools.cache
def quantised(kind: str) -> dict:
    """The base with all its kernels and its embedding, which is the head too, quantised."""
    params = base(CONFIG)
    for path, value in list(walk(params)):
        if path.endswith(("/kernel", "/embedding")):
            scheme = KINDS[MIXED[path.split("/")[-2]] if kind == "mixed" else kind]
            params = put(params, path, quantise(value, scheme, rows=path.endswith("/embedding")))
    return params




def summed(trainable, frozen, **options):
    logits = Decoder(CONFIG, **options).apply({"params": combine(trainable, frozen)}, IDS[:, :-1])
    return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), IDS[:, 1:, None], axis=-1)), logits


graded = jax.jit(jax.value_and_grad(summed, has_aux=True))


@functools.cache
def base_logits(kind: str):
    return jax.jit(lambda params: Decoder(CONFIG).apply({"params": params}, IDS[:, :-1]))(quantised(kind))


def close(found, expected, of):
    np.testing.assert_allclose(found, expected, rtol=0, atol=of * max(1e-6, float(jnp.max(jnp.abs(expected)))))


@pytest.mark.parametrize("name", [
    name if name in ("lora", "houlsby") else pytest.param(name, marks=pytest.mark.slow) for name in METHODS  # ten seconds each
])
def test_a_method_on_all_kinds_at_once(name):
    trains_and_leaves_the_node(name, "mixed")


@pytest.mark.slow  # forty programs to compile
@every_method
@every_kind
def test_a_method_on_one_kind(name, kind):
    trains_and_leaves_the_node(name, kind)


def trains_and_leaves_the_node(name, kind):
    """Identity at the start, where it is promised; gradients are those of the dequantised model; the loss falls; frozen bytes, and what
    detaching leaves, are the base's."""
    params = attach(quantised(kind), METHODS[name], KEY)
    params = compose(params, PLANS[name]) if name in PLANS else params
    trainable, frozen = partition(params)
    (start, logits), grads = graded(trainable, frozen)
    if name not in NO_IDENTITY:
        close(logits, base_logits(kind), 1e-5)

    away = moved(params)
    (_, logits), there = graded(*partition(away))
    (_, expected_logits), expected = graded(*partition(dequantised_below(away)))
    close(logits, expected_logits, 1e-5)
    there, expected = flatten(there), flatten(expected)
    assert there.keys() == expected.keys()
    for path, leaf in there.items():
        assert jnp.any(leaf != 0), path
        close(leaf, expected[path], 1e-5)

    held = {path: np.array(leaf) for path, leaf in flatten(frozen).items()}
    losses = [start]
    for _ in range(3):
        norm = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(grads)) ** 0.5
        trainable = jax.tree.map(lambda value, grad, norm=norm: value - np.float32(0.05 / norm) * np.asarray(grad), trainable, grads)
        (loss, _), grads = graded(trainable, frozen)
        losses.append(loss)
    assert all(after < before for before, after in zip(losses, losses[1:], strict=False)), losses
    for path, leaf in flatten(frozen).items():
        np.testing.assert_array_equal(leaf, held[path], err_msg=path)
    left = detach(combine(trainable, frozen))
    equal_trees(left, quantised(kind))
    assert jax.tree.structure(left) == jax.tree.structure(quantised(kind))


@jax.jit
def dequantised_below(params: dict) -> dict:
    """The tree with every quantised weight dense, under all adapters."""
    return jax.tree.map(lambda value: dense(value) if is_quantised(value) else value, params, is_leaf=is_quantised)


def is_quantised(value) -> bool:
    return isinstance(value, Quantised)


def test_merging_a_lora_is_the_dequantised_weight_plus_its_change():
    params = moved(attach(quantised("mixed"), METHODS["lora"], KEY))
    merged = merge(params)
    for path, node in walk(params):
        if not path.startswith("blocks") or not path.endswith("/kernel"):
            continue
        change = np.einsum("lri,lro->lio", node.a, node.b) * np.asarray(node.scale)[:, None, None]
        assert isinstance(node.base, Quantised) and not isinstance(get(merged, path), Kernel)
        close(get(merged, path), dense(node.base) + change, 1e-6)
    assert isinstance(get(merged, "embed/embedding"), Quantised)  # no adapter, nothing merged


@every_kind
@pytest.mark.parametrize("method", [full(), full(targets="q_proj"), full(targets="embed_tokens")], ids=repr)
def test_the_quantised_weight_itself_is_not_trained(kind, method):
    name = type(get(quantised(kind), "blocks/attn/q/kernel")).__name__
    with pytest.raises(ValueError, match=rf"full\(\) would train \S+, which is held as {name}: a quantised weight has no gradient"):
        attach(quantised(kind), [method], KEY)


@every_kind
def test_paths_go_on_below_the_kernel_and_nothing_of_the_base_has_a_role(kind):
    params = attach(quantised(kind), [lora(rank=2)], KEY)
    node = get(quantised(kind), "blocks/attn/q/kernel")
    fields = {f"blocks/attn/q/kernel/{field}" for field in node.array_fields if getattr(node, field) is not None}
    assert fields == {path for path in flatten(params) if path.startswith("blocks/attn/q/kernel/") and "default" not in path}
    assert {flatten(roles(params))[path] for path in fields} == {"vector"}
    assert flatten(roles(params))["blocks/attn/q/kernel/default/b"] == "fast"
    assert not fields & set(flatten(partition(params)[0]))


def test_what_is_trained_is_read_and_a_tied_head_too():
    params = attach(quantised("mixed"), METHODS["lora on embedding and head"], KEY)
    assert isinstance(get(params, "head/kernel").base, Tied)
    trainable, frozen = partition(params)
    require_read(lambda trainable: summed(trainable, frozen), trainable)


def test_abstract_trees_get_the_same_shapes():
    abstract = jax.eval_shape(lambda params: attach(params, METHODS["lora"], KEY), quantised("mixed"))
    assert jax.tree.structure(abstract) == jax.tree.structure(attach(quantised("mixed"), METHODS["lora"], KEY))


@pytest.mark.parametrize("options", [{"unroll": True}, {"remat": "block"}, {"segments": (1, 1)}], ids=str)
def test_how_the_stack_is_run_changes_nothing(options):
    whole = moved(attach(quantised("mixed"), METHODS["lora"], KEY))
    expected = flatten(graded(*partition(whole))[1])
    trainable, frozen = partition(cut(whole, CONFIG, options.get("segments", ())))
    found = jax.jit(jax.grad(lambda t, f: summed(t, f, **options)[0]))(trainable, frozen)
    for path, leaf in flatten(cut(found, CONFIG, ())).items():
        close(leaf, expected[path], 1e-4)


@pytest.mark.slow  # compiles a whole step again: five seconds
def test_the_house_step_trains_with_donated_state():
    trainable, frozen = partition(attach(quantised("mixed"), [lora(rank=2)], KEY))
    optimiser = adamw()
    step = jax.jit(make_step(Decoder(CONFIG), optimiser), donate_argnums=0)
    state, losses = new_state(trainable, optimiser, jax.random.key(1)), []
    for _ in range(3):
        state, metrics = step(state, frozen, train_batch(4, 6))
        losses.append(metrics["loss"])
    assert losses[2] < losses[1] < losses[0]
    equal_trees(detach(combine(state.trainable, frozen)), quantised("mixed"))
