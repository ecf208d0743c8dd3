"""What every weight delta keeps, a table of (method) x (law), on single kernels whose two sides differ.

A method is compiled twice, once for what it computes and once for its gradients, and all laws read the results.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMOL, noise

from peftjax.models.decoder import abstract_params
from peftjax.nn.kernels import dense, dot
from peftjax.nn.quant import Scheme, quantise
from peftjax.nn.shared import fill
from peftjax.nn.tree import flatten, get
from peftjax.peft.attach import attach
from peftjax.peft.delora import delora
from peftjax.peft.dense_delta import dense_delta
from peftjax.peft.fourierft import fourierft
from peftjax.peft.gralora import gralora
from peftjax.peft.hira import hira
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.lora import LoRA
from peftjax.peft.miss import miss
from peftjax.peft.partition import combine, partition, size
from peftjax.peft.randlora import randlora
from peftjax.peft.shira import shira
from peftjax.peft.vera import vera

KEY = jax.random.key(0)
PATHS = {"narrow": "blocks/attn/v/kernel", "wide": "blocks/mlp/up/kernel", "head": "head/kernel"}
SHAPES = {"narrow": (2, 12, 6), "wide": (2, 12, 32), "head": (12, 16)}
METHODS = {
    "delora": delora(rank=2, targets=".*"),
    "fourierft": fourierft(frequencies=7, targets=".*"),
    "gralora": gralora(rank=4, targets=".*"),
    "gralora hybrid": gralora(rank=2, hybrid_rank=3, alpha=5, targets=".*"),
    "hira": hira(rank=2, targets=".*"),
    "loha": loha(rank=1, targets=".*"),
    "loha formed": loha(rank=5, targets=".*"),
    "lokr": lokr(rank=1, targets=".*"),
    "lokr dense": lokr(rank=9, targets=".*"),
    "lokr of both": lokr(rank=1, decompose_both=True, init="zero_second", targets=".*"),
    "lokr by a factor": lokr(rank=2, decompose_factor=2, targets=".*"),
    "miss": miss(rank=5, targets=".*"),
    "miss mini": miss(rank=4, form="mini", mini_rank=2, targets=".*"),
    "miss bat": miss(rank=2, form="bat", targets=".*"),
    "randlora": randlora(rank=5, alpha=1, targets=".*"),
    "randlora sparse": randlora(rank=4, alpha=1, bases="sparse", targets=".*"),
    "shira": shira(rank=2, targets=".*"),
    "shira by magnitude": shira(rank=1, mask="magnitude", targets=".*"),
    "vera": vera(rank=3, targets=".*"),
    "dense": dense_delta(targets=".*"),
}
FACTORED = ("delora", "gralora", "gralora hybrid", "loha", "lokr", "lokr of both", "lokr by a factor", "miss", "miss mini", "vera")
READ_THE_WEIGHT = ("delora", "hira", "miss bat", "shira by magnitude")
SAME_PROGRAM = {"shira by magnitude", "randlora sparse"}  # as another row: they differ in what they start from
every_method = pytest.mark.parametrize("name", [name for name in METHODS if name not in SAME_PROGRAM])
every_start = pytest.mark.parametrize("name", METHODS)


@functools.cache
def kernels() -> dict:
    """Kernels of several shapes, in a stack of two layers and outside."""
    made = {kernel: noise(path, jax.ShapeDtypeStruct(SHAPES[kernel], jnp.float32)) for kernel, path in PATHS.items()}
    attention, mlp = {"v": {"kernel": made["narrow"]}}, {"up": {"kernel": made["wide"]}}
    return {"blocks": {"attn": attention, "mlp": mlp}, "head": {"kernel": made["head"]}}


@functools.cache
def started(name: str) -> dict:
    return attach(kernels(), [METHODS[name]], KEY)


@functools.cache
def trained(name: str) -> dict:
    """All trainables off their start."""
    trainable, frozen = partition(started(name))
    return combine(jax.tree_util.tree_map_with_path(lambda at, leaf: leaf + 0.5 * noise(str(at), leaf), trainable), frozen)


def node_at(params: dict, kernel: str):
    """The node at a kernel, with what it shares."""
    return fill(get(params, PATHS[kernel]), params.get("shared", {}))


def layer_of(params: dict, kernel: str, layer: int):
    node = get(params, PATHS[kernel])
    node = node if kernel == "head" else jax.tree.map(lambda leaf: leaf[layer], node)
    return fill(node, params.get("shared", {}))


def inputs(node, *leading: int) -> jax.Array:
    return noise("x", jax.ShapeDtypeStruct((*leading, node.shape[0]), jnp.float32))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(np.max(np.abs(expected)))))


@jax.jit
def computed(params: dict) -> dict:
    """What each node, whole and a layer of it, makes of its inputs: few tokens and many, which some methods compute differently."""
    found = {}
    for kernel in PATHS:
        whole, node = node_at(params, kernel), layer_of(params, kernel, 1)
        found[kernel] = {
            "delta": whole.delta(), "merged": whole.merge(), "one": node.delta(), "one merged": node.merge(),
            "few": node.change(inputs(node)), "many": node.change(inputs(node, 3, 20)), "product": dot(inputs(node, 3), node),
            "base product": dot(inputs(node, 3), node.base), "factors": node.factors(), "all factors": whole.factors(),
        }
    half = layer_of(params, "wide", 1)
    half = dataclasses.replace(half, base=half.base.astype(jnp.bfloat16))
    return {**found, "half": {"merged": half.merge(), "product": dot(inputs(half, 2).astype(jnp.bfloat16), half)}}


@functools.cache
def results(name: str) -> dict:
    return jax.tree.map(np.asarray, computed(trained(name)))


@every_method
def test_the_change_is_the_product_with_the_delta(name):
    for kernel in PATHS:
        node, found = layer_of(trained(name), kernel, 1), results(name)[kernel]
        assert found["one"].shape == node.shape == SHAPES[kernel][-2:] and found["one"].dtype == np.float32
        assert np.abs(found["one"]).max() > 1e-2
        for tokens, leading in (("few", ()), ("many", (3, 20))):
            close(found[tokens], np.asarray(inputs(node, *leading)) @ found["one"])


@every_method
def test_factors_are_those_of_the_delta_where_there_are_any(name):
    """The low rank of the methods in FACTORED is known whatever their values are, at least on the widest kernel."""
    for kernel in PATHS:
        found = results(name)[kernel]
        for factors, delta in ((found["factors"], found["one"]), (found["all factors"], found["delta"])):
            if factors is not None:
                a, b = factors
                assert a.dtype == b.dtype == np.float32 and a.shape[-1] == delta.shape[-2] and b.shape[-1] == delta.shape[-1]
                close(np.einsum("...ri,...ro->...io", a, b), delta)
    assert (results(name)["wide"]["factors"] is not None) == (name in FACTORED)


@every_method
def test_multiplying_is_multiplying_by_what_is_merged(name):
    for kernel in PATHS:
        found = results(name)[kernel]
        close(found["product"], np.asarray(inputs(layer_of(trained(name), kernel, 1), 3)) @ found["one merged"])
    assert results(name)["half"]["merged"].dtype == jnp.bfloat16 == results(name)["half"]["product"].dtype


@every_method
def test_the_delta_of_a_stack_is_that_of_its_layers(name):
    for kernel in PATHS:
        found = results(name)[kernel]
        assert found["delta"].shape == found["merged"].shape == SHAPES[kernel]
        close(found["delta"] if kernel == "head" else found["delta"][1], found["one"])
        close(found["merged"] if kernel == "head" else found["merged"][1], found["one merged"])


@every_start
def test_the_start_is_the_base_exactly(name):
    found = computed(started(name))
    for kernel in PATHS:
        np.testing.assert_array_equal(found[kernel]["product"], found[kernel]["base product"])
        np.testing.assert_array_equal(found[kernel]["merged"], get(kernels(), PATHS[kernel]))


@functools.partial(jax.jit, static_argnames="layers")
def slopes(params: dict, layers: tuple[int, ...] = (1,)) -> tuple[dict, dict]:
    """Gradients by `change` and by the dense delta, on single layers, of one loss."""
    trainable, frozen = partition(params)

    def loss(trainable, read):
        nodes = [layer_of(combine(trainable, frozen), kernel, layer) for kernel in PATHS for layer in layers]
        made = [jnp.tanh(read(node, inputs(node, 30))) for node in nodes]
        return sum(jnp.sum(y * noise("dy", y)) for y in made)

    return tuple(jax.grad(loss)(trainable, read) for read in (lambda node, x: node.change(x), lambda node, x: x @ node.delta()))


@pytest.mark.slow  # differentiates every variant twice: ten seconds
@every_method
def test_change_and_delta_have_the_same_gradients_and_they_reach_every_value(name):
    by_change, by_delta = map(flatten, slopes(trained(name)))
    for path, leaf in by_change.items():
        own = leaf if path.startswith("head") else leaf[1]
        assert np.isfinite(leaf).all() and np.mean(own != 0) > 0.9, path
        np.testing.assert_allclose(leaf, by_delta[path], rtol=1e-3, atol=1e-4 * np.abs(by_delta[path]).max(), err_msg=path)


@every_start
def test_gradients_are_finite_at_the_start_and_move_every_kernel(name):
    found = flatten(slopes(started(name))[0])
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    for path in PATHS.values():
        assert any(np.any(leaf != 0) for at, leaf in found.items() if at.startswith(path)), path


@pytest.mark.parametrize("name", READ_THE_WEIGHT)
def test_on_a_quantised_weight_it_is_the_update_of_the_dequantised_one(name):
    held = quantise(noise("w", jax.ShapeDtypeStruct((2, 64, 32), jnp.float32)), Scheme("nf4"))
    method = dataclasses.replace(METHODS[name], targets="up_proj")
    params, plain = (attach({"blocks": {"mlp": {"up": {"kernel": weight}}}}, [method], KEY) for weight in (held, dense(held)))
    found, expected = ((node.delta(), node.merge()) for node in map(moved_node, (params, plain)))
    for one, other in zip(found, expected, strict=True):
        close(one, other)


def moved_node(params: dict):
    trainable, frozen = partition(params)
    return get(combine(jax.tree.map(lambda leaf: leaf + 0.3, trainable), frozen), PATHS["wide"])


@pytest.mark.parametrize("name", READ_THE_WEIGHT)
def test_an_update_that_reads_the_weight_reads_the_one_under_all_adapters(name):
    """So that it does not matter what was attached first."""
    weight = get(kernels(), PATHS["wide"])
    beside = LoRA(weight, jnp.ones((2, 2, 12)), jnp.ones((2, 2, 32)), jnp.ones(2), None, "other")
    method = dataclasses.replace(METHODS[name], targets="up_proj")
    over, alone = (moved_node(attach({"blocks": {"mlp": {"up": {"kernel": value}}}}, [method], KEY)) for value in (beside, weight))
    np.testing.assert_array_equal(over.delta(), alone.delta())


@pytest.mark.parametrize("name", ["hira", "miss"])
def test_dropout_is_on_the_input_of_the_update_alone(name):
    params = attach(kernels(), [dataclasses.replace(METHODS[name], dropout=0.5)], KEY)
    node = jax.tree.map(lambda leaf: leaf[0], moved_node(params))
    assert node.dropout.shape == () and node.dropout == 0.5
    x = inputs(node, 4)
    full, dropped = (dot(x, node, key) - x @ node.base for key in (None, KEY))
    assert float(jnp.abs(full - dropped).max()) > 1e-2
    close(dataclasses.replace(node, dropout=jnp.float32(0)).dot(x, KEY), dot(x, node))


COUNTS = {  # on SmolLM2-135M: 30 layers, 576 wide, keys and values 192, mlp 1536
    "delora r 8 q, v": (delora(targets=["q_proj", "v_proj"]), 460_800 + 60),
    "fourierft n 200 q, v": (fourierft(frequencies=200, targets=["q_proj", "v_proj"]), 12_000),
    "gralora r 8 q, v, as lora": (gralora(rank=8, targets=["q_proj", "v_proj"]), 460_800),
    "gralora r 4 with 4 beside": (gralora(rank=4, hybrid_rank=4, targets=["q_proj", "v_proj"]), 460_800),
    "hira r 8 q, v, down": (hira(rank=8, targets=["q_proj", "v_proj", "down_proj"]), 30 * 8 * (1152 + 768 + 2112)),
    "loha r 8 q, v, down": (loha(targets=["q_proj", "v_proj", "down_proj"]), 1_935_360),
    "lokr r 8 q, v, down": (lokr(targets=["q_proj", "v_proj", "down_proj"]), 87_360),
    "miss r 8 q, v": (miss(rank=8, targets=["q_proj", "v_proj"]), 184_320),
    "miss mini": (miss(rank=8, form="mini", mini_rank=4, targets=["q_proj", "v_proj"]), 30 * 2 * 8 * 4),
    "miss bat": (miss(rank=8, form="bat", targets=["q_proj", "v_proj"]), 184_320),
    "randlora r 16 q, v": (randlora(rank=16, targets=["q_proj", "v_proj"]), 714_240),
    "shira r 8 q, v, as lora": (shira(rank=8, targets=["q_proj", "v_proj"]), 460_800),
    "vera r 64 q, v": (vera(rank=64, targets=["q_proj", "v_proj"]), 26_880),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_number_of_trainables_on_smollm2(name):
    method, count = COUNTS[name]
    params = jax.eval_shape(lambda params: attach(params, [method], KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == count


PATTERNS = {
    "delora": delora(rank=2, targets=".*"),
    "hira": hira(rank=2, targets=".*"),
    "loha": loha(rank=2, targets=".*"),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_ranks_may_differ_between_layers_and_what_is_beyond_a_rank_is_never_trained(name):
    params = attach(kernels(), [dataclasses.replace(PATTERNS[name], rank_pattern={"blocks/1/attn/v": 3, "up_proj": 1})], KEY)
    for field in get(params, PATHS["wide"]).ranked:
        assert getattr(get(params, PATHS["wide"]), field).shape[1] == 1
    trainable, frozen = partition(params)
    for _ in range(3):
        by_change, _ = slopes(combine(trainable, frozen), layers=(0, 1))
        trainable = jax.tree.map(lambda value, slope: value - 0.1 * np.asarray(slope), trainable, by_change)
    node = get(trainable, PATHS["narrow"])
    for field in node.ranked:
        value = np.asarray(getattr(node, field))
        assert value.shape[1] == 3 and not value[0, 2:].any() and value[0, :2].all() and value[1].all(), field
    whole = get(combine(trainable, frozen), PATHS["narrow"])
    short = jax.tree.map(lambda leaf: leaf[0], whole)
    short = dataclasses.replace(short, **{field: getattr(short, field)[:2] for field in short.ranked})
    close(whole.delta()[0], short.delta())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: delora(rank=0), "DeLoRA rank 0 is not positive"),
        (lambda: fourierft(frequencies=0), "FourierFT frequencies 0 is not positive"),
        (lambda: fourierft(init="ones"), "FourierFT init 'ones' is none of zeros, normal"),
        (lambda: gralora(rank=3), "GraLoRA shares rank 3 out over 2 blocks, which do not divide it"),
        (lambda: gralora(blocks=0), "GraLoRA blocks 0 is not positive"),
        (lambda: gralora(hybrid_rank=-1), "GraLoRA hybrid_rank -1 is negative"),
        (lambda: hira(rank=0), "HiRA rank 0 is not positive"),
        (lambda: hira(rank_pattern={"q_proj": 0}), "HiRA rank 0 is not positive"),
        (lambda: hira(init="gauss"), r"HiRA init 'gauss' is none of kaiming, gaussian \(did you mean 'gaussian'\?\)"),
        (lambda: loha(rank=-1), "LoHa rank -1 is not positive"),
        (lambda: loha(dropout=1.0), r"LoHa dropout 1.0 is not in \[0, 1\)"),
        (lambda: lokr(rank=0), "LoKr rank 0 is not positive"),
        (lambda: lokr(decompose_factor=0), "LoKr decompose_factor 0 is neither positive nor -1"),
        (lambda: lokr(init="lycoris"), "LoKr init 'lycoris' is none of zero_first, zero_second"),
        (lambda: miss(rank=0), "MiSS rank 0 is not positive"),
        (lambda: miss(form="minni"), r"MiSS form 'minni' is none of default, mini, bat \(did you mean 'mini'\?\)"),
        (lambda: randlora(rank=0), "RandLoRA rank 0 is not positive"),
        (lambda: randlora(bases="spares"), r"RandLoRA bases 'spares' is none of .* \(did you mean 'sparse'\?\)"),
        (lambda: shira(rank=0), "SHiRA rank 0 is not positive"),
        (lambda: shira(mask="snip"), "SHiRA mask 'snip' is none of random, magnitude"),
        (lambda: vera(rank=0), "VeRA rank 0 is not positive"),
    ],
)
def test_wrong_hyper_parameters_are_refused_when_stated(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([fourierft(frequencies=73, targets="v_proj")], "FourierFT frequencies 73 are more than the 72 entries of blocks/attn/v/kernel"),
        ([fourierft(frequency_pattern={"blocks/1/attn/v": 3})], "FourierFT frequencies must be one number in a scanned stack"),
        ([gralora(rank=4, blocks=4)], "GraLoRA blocks 4 do not divide both sides of blocks/attn/v/kernel, which is 12 x 6"),
        ([miss(rank=13)], "MiSS rank 13 is more than the 12 inputs of blocks/attn/v/kernel"),
        ([miss(rank=4, form="bat")], "MiSS form 'bat' needs blocks of 4 x 4; blocks/attn/v/kernel is 12 x 6"),
        ([miss(rank=4, form="mini", mini_rank=4)], "MiSS mini_rank 4 does not divide the 6 outputs of blocks/attn/v/kernel"),
        ([shira(rank=5)], "SHiRA rank 5 would train 90 entries of blocks/attn/v/kernel, which has 72"),
        ([lokr(rank_pattern={"blocks/1/attn/v": 3})], r"LoKr rank must be one number in a scanned .* blocks/attn/v/kernel has \[3, 8\]"),
        ([hira(rank_pattern={"k_proj": 3})], "rank_pattern 'k_proj' matches none of the targets"),
        ([vera(rank=2, targets="up_proj"), vera(rank=2, targets="v_proj")], "shared/default/vera/a is taken; give one of the two"),
        ([randlora(rank=2, targets="up_proj"), randlora(rank=2, targets="v_proj")], "shared/default/randlora/a is taken"),
    ],
)
def test_what_does_not_fit_the_kernels_is_refused_when_attached(methods, message):
    with pytest.raises(ValueError, match=message):
        attach(kernels(), methods, KEY)
