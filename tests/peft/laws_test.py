"""The laws that every method keeps, a table of (method) x (law).

Exact bits are asked of programs compiled with the backend's optimisation on, as a user's are.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    BATCH,
    LENGTH,
    SMOL,
    TIED,
    TINY,
    adamw,
    base,
    equal_trees,
    logits,
    moved,
    run,
    shapes,
    tokens,
    train,
    train_batch,
)

from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder, abstract_params, cut
from peftjax.nn.kernels import Entry, Kernel, dense, dot
from peftjax.nn.shared import fill
from peftjax.nn.tree import flatten, unflatten_like, walk
from peftjax.peft import spec
from peftjax.peft.across_layers import across_layers
from peftjax.peft.adalora import adalora
from peftjax.peft.attach import activate, adapters, attach, detach
from peftjax.peft.blend import to_lora
from peftjax.peft.boft import boft
from peftjax.peft.bottleneck import bottleneck, houlsby, parallel, pfeiffer, scaled_parallel
from peftjax.peft.changes import changes
from peftjax.peft.compacter import compacter
from peftjax.peft.delora import delora
from peftjax.peft.dense_delta import dense_delta
from peftjax.peft.drop import drop_layers
from peftjax.peft.factored import dense as dense_of
from peftjax.peft.fourierft import fourierft
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.gralora import gralora
from peftjax.peft.hira import hira
from peftjax.peft.hra import hra
from peftjax.peft.ia3 import ia3
from peftjax.peft.invertible import invertible
from peftjax.peft.loha import loha
from peftjax.peft.lokr import lokr
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.miss import miss
from peftjax.peft.oft import oft
from peftjax.peft.partition import combine, partition, size
from peftjax.peft.parts import bitfit, full, head_only, norm_only
from peftjax.peft.prefix import prefix
from peftjax.peft.prompt import p_tuning, prompt_tuning
from peftjax.peft.randlora import randlora
from peftjax.peft.reft import loreft
from peftjax.peft.road import road
from peftjax.peft.shira import shira
from peftjax.peft.tokens import trainable_tokens
from peftjax.peft.vera import vera
from peftjax.train.loss import token_losses
from peftjax.train.step import make_step, new_state

KEY = jax.random.key(0)
BOTH = ("attn_out", "mlp_out")
EVERYWHERE = ("embed_out", "attn_in", "attn_out", "mlp_in", "block_out", "final_out")
METHODS = {
    "lora": (lora(rank=2, alpha=3),),
    "lora gaussian": (lora(rank=2, init="gaussian", rslora=True),),
    "lora orthogonal": (lora(rank=2, init="orthogonal"),),
    "lora patterns": (
        lora(
            rank=2, rank_pattern={"blocks/1/.*": 3, "down_proj": 1}, targets=["all-linear", "embed_tokens", "lm_head"]
        ),
    ),
    "houlsby": (houlsby(size=3),),
    "pfeiffer": (pfeiffer(size=3),),
    "parallel": (parallel(size=3),),
    "scaled parallel": (scaled_parallel(size=3),),
    "bottleneck everywhere": (
        bottleneck(size=3, sites=EVERYWHERE, reads="output", norm="both", scale="channel", activation="gelu"),
    ),
    "full": (full(),),
    "bitfit": (bitfit(add=True),),
    "norms": (norm_only(),),
    "head": (head_only(),),
    "lora bias": (lora(rank=2, alpha=3, lora_bias=True),),
    "dora": (lora(rank=2, alpha=3, dora=True),),
    "dora patterns": (
        lora(
            rank=2, rank_pattern={"blocks/1/.*": 3, "down_proj": 1}, targets=["all-linear", "embed_tokens", "lm_head"], dora=True
        ),
    ),
    "dora on a tied embedding": (lora(rank=2, targets=["embed_tokens", "q_proj"], dora=True),),
    "dora and lora": (lora(rank=2, dora=True, name="tone"), lora(rank=1, targets=["q_proj", "down_proj"], name="task")),
    "lora apart from the head": (lora(rank=2, targets=["embed_tokens", "q_proj"], ensure_weight_tying=False),),
    "embedding apart from the head": (full(targets=["embed_tokens", "v_proj"], ensure_weight_tying=False),),
    "tokens": (trainable_tokens(ids=(3, 7, 31)),),
    "tokens of both": (trainable_tokens(ids=(3, 7, 31), targets=["embed_tokens", "lm_head"]),),
    "transforms": (
        ia3(name="scales"),
        oft(block_size=4, targets=["q_proj", "down_proj"], name="series"),
        oft(block_size=4, exact=True, coft=True, eps=0.1, block_share=True, targets="k_proj", name="exact"),
        boft(factors=2, targets=["q_proj", "o_proj"], name="butterfly"),
        hra(rank=2, targets="up_proj", name="mirrors"),
        road(variant=2, group=4, targets=["v_proj", "gate_proj"], name="turns"),
    ),
    "modules": (
        compacter(size=4, name="kronecker"),
        invertible(),
        loreft(rank=2, suffix_positions=1, dropout=0.0, name="edit"),
        houlsby(size=3, gate="mean", norm="before", anneal=True, name="gated"),
    ),
    "context": (
        prompt_tuning(length=2, name="tone"),
        p_tuning(length=1, hidden=9),
        p_tuning(length=2, hidden=3, encoder="lstm", name="recurrent"),
        prefix(length=2, gates=2, name="task"),
        prefix(length=1, hidden=3, offset=False, name="shift"),
    ),
    "across layers": (across_layers(lora(rank=2)), across_layers(houlsby(size=3, name="task"))),
    "deltas": (
        loha(rank=1, targets="q_proj", name="pairs"),
        lokr(rank=1, targets=["k_proj", "v_proj"], name="kronecker"),
        hira(rank=2, targets="v_proj", name="weight"),
        miss(rank=5, targets="o_proj", name="shards"),
        shira(rank=2, targets="gate_proj", name="entries"),
        vera(rank=4, targets=["up_proj", "down_proj"], name="vectors"),
    ),
    "more deltas": (
        randlora(rank=5, alpha=5, targets=["q_proj", "o_proj"], name="bases"),
        fourierft(frequencies=40, scale=300, targets="k_proj", name="waves"),
        gralora(rank=4, hybrid_rank=1, alpha=5, targets="v_proj", name="grid"),
        delora(rank=2, strength=1, targets="gate_proj", name="bounded"),
        miss(rank=4, form="bat", targets="up_proj", name="blocks"),
        miss(rank=3, form="mini", mini_rank=4, targets="down_proj", name="shards"),
    ),
    "low rank": (
        lora(rank=2, alpha=3, init="pissa", targets=["q_proj", "up_proj"], name="principal"),
        lora(rank=2, freeze_a=True, targets=["v_proj", "down_proj"], name="frozen"),
        adalora(rank=3, target_rank=2, targets=["v_proj", "o_proj"], name="shrinking"),
    ),
    "gated": (gated_lora(rank=2, alpha=6, targets=["q_proj", "down_proj"]), gated_lora(rank=1, gate="row", name="row")),
    "dense": (dense_delta(targets=["k_proj", "down_proj"]),),
    "mixed": (
        lora(rank=2, name="tone"),
        lora(rank=1, targets="q_proj", name="task"),
        houlsby(size=3),
        norm_only(name="norms"),
    ),
}
ELSEWHERE = {  # the same laws, beside what they need
    "classifier": "encoder_laws_test", "fusion": "fusion_test",
}  # fmt: skip
ONLY_NEAR_THE_BASE = {
    "lora orthogonal": 1e-6,
    "low rank": 1e-5,  # PiSSA's part is added and subtracted
    "transforms": 1e-5,  # reflections in pairs
    "modules": 1e-5,  # Compacter's rule is near zero, LoReFT's values are those that are there
    "head": 1e-6,
}  # a head of its own multiplies by the embedding in another layout
NO_WEIGHT = {"gated": "a gate depends on the token"}
NOT_THE_BASE = {"context"}  # any slot before a sequence takes its share of attention
SAME_PROGRAM = {
    "lora gaussian",
    "lora orthogonal",
    "pfeiffer",
    "parallel",
}  # as another row: they differ in what they start from
every_method = pytest.mark.parametrize("name", METHODS)
every_program = pytest.mark.parametrize("name", [name for name in METHODS if name not in SAME_PROGRAM])


@functools.cache
def attached(name: str, config: DecoderConfig = TIED) -> dict:
    return attach(base(config), METHODS[name], KEY)


@functools.cache
def trained(name: str) -> dict:
    """As after training: all trainables moved off their start."""
    return moved(attached(name))


@functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
)
def optimised(params, ids):
    return Decoder(TIED).apply({"params": params}, ids)


def test_every_method_there_is_keeps_them():
    found = {type(method).__name__ for row in METHODS.values() for method in row}
    assert found | set(ELSEWHERE) == set(spec.METHODS) and not found & set(ELSEWHERE)


@every_method
def test_identity_at_the_start(name):
    got, want = optimised(attached(name), tokens()), optimised(base(TIED), tokens())
    if name in NOT_THE_BASE:
        assert np.abs(got - want).max() > 1e-2
    elif name in ONLY_NEAR_THE_BASE:
        np.testing.assert_allclose(got, want, rtol=ONLY_NEAR_THE_BASE[name], atol=ONLY_NEAR_THE_BASE[name])
    else:
        np.testing.assert_array_equal(got, want)


def test_an_untied_head_starts_on_the_base_exactly():
    want = run(base(), tokens(), Decoder(TINY))
    np.testing.assert_array_equal(run(attached("head", TINY), tokens(), Decoder(TINY)), want)


@every_program
def test_training_moves_the_logits_and_detaching_gives_the_base_bit_for_bit(name):
    assert np.abs(logits(trained(name), TIED) - logits(base(TIED), TIED)).max() > 1e-2
    equal_trees(detach(trained(name)), base(TIED))
    np.testing.assert_array_equal(logits(detach(trained(name)), TIED), logits(base(TIED), TIED))


@every_program
def test_multiplying_by_a_node_is_multiplying_by_its_dense_weight(name):
    for path, value in walk(trained(name)):
        if isinstance(value, Entry) or not path.startswith("blocks") or not path.endswith("kernel"):
            continue
        for layer in range(TIED.layers):
            kernel = fill(jax.tree.map(lambda leaf, i=layer: leaf[i], value), trained(name).get("shared", {}))
            x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, kernel.shape[0])), jnp.float32)
            if name in NO_WEIGHT and isinstance(kernel, Kernel):
                with pytest.raises(TypeError, match=NO_WEIGHT[name]):
                    dense(kernel)
                continue
            bias = kernel.merged_bias() if isinstance(kernel, Kernel) else None
            want = dot(x, dense(kernel)) + (0 if bias is None else jnp.broadcast_to(bias, (2, 3, *bias.shape)))
            np.testing.assert_allclose(dot(x, kernel), want, rtol=1e-4, atol=1e-5, err_msg=path)


@every_program
def test_merging_changes_nothing(name):
    if name in NO_WEIGHT:
        with pytest.raises(TypeError, match=NO_WEIGHT[name]):
            merge(trained(name), strict=False)
        return
    merged = merge(trained(name), strict=False)
    np.testing.assert_allclose(logits(merged, TIED), logits(trained(name), TIED), rtol=1e-3, atol=1e-4)


NO_MATRIX = "a network at a site changes no weight|trains a vector here|is no part of a weight|a gate depends on the token"


@pytest.mark.slow  # every kernel of every adapter is read and put back twice, not compiled: a minute
@every_program
def test_what_changes_matrices_is_a_lora_of_any_rank_with_the_loss_that_was_measured(name):
    for adapter in adapters(trained(name)):
        params = activate(trained(name), [adapter])
        try:
            exact, cut = to_lora(params, adapter), to_lora(params, adapter, 1)
        except TypeError as error:
            assert re.search(NO_MATRIX, str(error)), error
            continue
        np.testing.assert_allclose(logits(exact.params, TIED), logits(params, TIED), rtol=1e-3, atol=1e-3, err_msg=adapter)
        wanted, found = changes(params, adapter), changes(cut.params, adapter)
        for key, error in cut.certificate.kernels.items():
            there = dense_of(wanted[key].read().weight)
            lost = np.linalg.norm(dense_of(found[key].read().weight) - there) / np.linalg.norm(there)
            assert error.rank <= 1 and error.relative == pytest.approx(lost, abs=1e-4), key


@every_method
def test_attaching_is_a_function_of_its_arguments_and_not_of_the_order(name):
    equal_trees(attach(base(TIED), METHODS[name][::-1], KEY), attached(name))


@pytest.mark.slow  # a program for each method and cut: half a minute
@every_method
def test_how_the_stack_is_cut_changes_nothing(name):
    segments = (1, 1)
    parts = attach(cut(base(TIED), TIED, segments), METHODS[name], KEY)
    if not name.endswith("patterns"):  # a segment holds the rows of its own ranks only
        equal_trees(cut(parts, TIED, ()), attached(name))
    np.testing.assert_allclose(
        logits(moved_as(parts, name), TIED, segments=segments), logits(trained(name), TIED), rtol=1e-4, atol=1e-5
    )


def moved_as(parts: dict, name: str) -> dict:
    """A cut tree that holds what `trained(name)` holds, each segment without the rows that its ranks leave at zero."""
    whole = flatten(cut(trained(name), TIED, (1, 1)))
    return unflatten_like(
        parts, {path: whole[path][tuple(map(slice, leaf.shape))] for path, leaf in flatten(parts).items()}
    )


@pytest.mark.slow  # a program more for each method: twenty seconds
@every_program
def test_scanning_and_unrolling_change_nothing(name):
    np.testing.assert_allclose(
        logits(trained(name), TIED, unroll=True), logits(trained(name), TIED), rtol=1e-4, atol=1e-5
    )


@every_program
def test_layers_that_are_off_compute_as_the_base(name):
    """What lies outside the stack of layers goes on acting."""
    if name == "context":  # keys before the sequence take their share of attention whatever they are
        with pytest.raises(TypeError, match="blocks/attn/kv/.*: Prefix.* has no values at which it changes nothing"):
            drop_layers(trained(name), [0])
        return
    beside = {path: value for path, value in trained(name).items() if path not in ("blocks", "shared")}
    off = drop_layers(trained(name), range(TIED.layers))
    want = logits({**beside, "blocks": base(TIED)["blocks"]}, TIED)
    np.testing.assert_allclose(logits(off, TIED), want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # compiles three backward passes: ten seconds
def test_recomputing_changes_no_gradient():
    trainable, frozen = partition(trained("mixed"))

    def loss(trainable, remat):
        return jnp.sum(token_losses(Decoder(TIED, remat=remat), combine(trainable, frozen), train_batch())[0])

    gradient = jax.jit(jax.grad(loss), static_argnames="remat")
    want = flatten(gradient(trainable, remat="none"))
    for remat in ("dots", "block"):
        for path, leaf in flatten(gradient(trainable, remat=remat)).items():
            np.testing.assert_allclose(leaf, want[path], rtol=1e-3, atol=1e-4, err_msg=f"{remat} {path}")


@pytest.mark.slow  # every operation of every method by itself: a minute
@every_program
def test_plain_is_jit(name):
    plain = Decoder(TIED).apply({"params": trained(name)}, tokens())
    np.testing.assert_allclose(plain, logits(trained(name), TIED), rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # traces each method twice: twenty seconds
@every_method
def test_abstract_trees_get_the_same_shapes(name):
    abstract = jax.eval_shape(lambda params: attach(params, METHODS[name], KEY), abstract_params(TIED))
    assert shapes(abstract) == shapes(attached(name))
    assert jax.tree.structure(abstract) == jax.tree.structure(attached(name))
    jitted = flatten(jax.jit(lambda params: attach(params, METHODS[name], KEY))(base(TIED)))
    for path, leaf in flatten(attached(name)).items():
        np.testing.assert_allclose(jitted[path], leaf, rtol=1e-5, atol=1e-7, err_msg=path)


@every_method
def test_gradients_reach_every_leaf_and_the_frozen_base_stays(name):
    """Two steps of AdamW without decay, donating the state: whatever has moved was reached by a gradient."""
    params = attach(base(TIED), METHODS[name], KEY)
    frozen_before = {path: np.array(leaf) for path, leaf in flatten(partition(params)[1]).items()}
    start = {path: np.array(leaf) for path, leaf in flatten(partition(params)[0]).items()}
    optimiser = adamw(decay=0.0)
    step = jax.jit(make_step(Decoder(TIED), optimiser), donate_argnums=0)
    trainable, frozen = partition(params)
    state = new_state(trainable, optimiser, jax.random.key(1))  # the key is donated with the state
    for number in range(2):
        state, metrics = step(state, frozen, train_batch(batch=4, length=6, seed=number))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    for path, leaf in flatten(state.trainable).items():
        layers = leaf if path.startswith("blocks") else leaf[None]
        first = start[path] if path.startswith("blocks") else start[path][None]
        assert all(np.any(layer != before) for layer, before in zip(layers, first, strict=True)), path
    for path, leaf in flatten(frozen).items():
        np.testing.assert_array_equal(leaf, frozen_before[path], err_msg=path)
    np.testing.assert_array_equal(logits(detach(combine(state.trainable, frozen)), TIED), logits(base(TIED), TIED))


COUNTS = {
    "lora r 16 all linear": (lora(rank=16), 4_884_480),
    "lora r 8 all linear": (lora(rank=8), 2_442_240),
    "dora r 8 q, v, down": (lora(rank=8, targets=["q_proj", "v_proj", "down_proj"], dora=True), 1_008_000),
    "lora r 8 q, v": (lora(rank=8, targets=["q_proj", "v_proj"]), 460_800),
    "pfeiffer m 36": (pfeiffer(size=36), 1_262_520),
    "pfeiffer reduction 16": (pfeiffer(reduction_factor=16), 1_262_520),
    "houlsby m 36": (houlsby(size=36), 2_525_040),
    "norms": (norm_only(), 35_136),
    "full": (full(), 134_515_008),
    "head": (head_only(), 49_152 * 576),
    "lora r 8 q, v with bias": (lora(rank=8, targets=["q_proj", "v_proj"], lora_bias=True), 460_800 + 30 * (576 + 192)),
    "lora r 8 embedding": (lora(rank=8, targets="embed_tokens", ensure_weight_tying=False), 8 * (49_152 + 576)),
    "tokens": (trainable_tokens(ids=range(10)), 10 * 576),
    "queries": (full(targets="q_proj"), 30 * 576 * 576),
    "bitfit": (bitfit(add=True), 30 * (3 * 576 + 2 * 192 + 2 * 1536)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_number_of_trainables_on_smollm2(name):
    method, count = COUNTS[name]
    params = jax.eval_shape(lambda params: attach(params, [method], KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == count


MEMBERS = 3


def member_loss(trainable, frozen, batch):
    return jnp.sum(token_losses(Decoder(TINY), combine(trainable, frozen), batch)[0])


def members(name: str):
    """(trainables of each member, stacked, the frozen tree)."""
    trees = [moved(attach(base(), METHODS[name], jax.random.key(seed)), 0.1 * (seed + 1)) for seed in range(MEMBERS)]
    halves = [partition(tree)[0] for tree in trees]
    return halves, jax.tree.map(lambda *leaves: jnp.stack(leaves), *halves), partition(trees[0])[1]


POPULATION = jax.vmap(jax.value_and_grad(member_loss), in_axes=(0, None, None))


@pytest.mark.slow  # compiles two steps for each: two minutes
@every_program
def test_a_member_of_a_population_is_its_solo_run(name):
    solos, stacked, frozen = members(name)
    losses, grads = jax.jit(POPULATION)(stacked, frozen, train_batch())
    solo = jax.jit(jax.value_and_grad(member_loss))
    assert len(set(np.asarray(losses).tolist())) == MEMBERS
    for number, one in enumerate(solos):
        loss, gradient = solo(one, frozen, train_batch())
        np.testing.assert_allclose(losses[number], loss, rtol=1e-5)
        for path, leaf in flatten(gradient).items():
            np.testing.assert_allclose(flatten(grads)[path][number], leaf, rtol=1e-3, atol=1e-4, err_msg=path)


def inner_programs(value):
    if hasattr(value, "jaxpr"):
        value = value.jaxpr
    if hasattr(value, "eqns"):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from inner_programs(part)


def equations(program):
    for equation in program.eqns:
        yield equation
        for value in equation.params.values():
            for inner in inner_programs(value):
                yield from equations(inner)


@pytest.mark.parametrize("name", ["lora", "dora", "houlsby", "pfeiffer"])
def test_the_base_is_not_batched_over_a_population(name):
    """A base product takes the weight as it is and all members' rows at once; no copies of a weight, there and back."""
    _, stacked, frozen = members(name)
    weights = {tuple(leaf.shape) for path, leaf in flatten(base()).items() if path.endswith("kernel")}
    weights |= {shape[1:] for shape in weights if len(shape) == 3}
    weights |= {shape[::-1] for shape in weights if len(shape) == 2}
    copied = {(MEMBERS, *shape) for shape in weights} | {
        (shape[0], MEMBERS, *shape[1:]) for shape in weights if len(shape) == 3
    }
    batch = train_batch()
    products = 0
    for equation in equations(jax.make_jaxpr(POPULATION)(stacked, frozen, batch).jaxpr):
        for variable in equation.outvars:
            assert tuple(variable.aval.shape) not in copied, (
                f"{equation.primitive} makes copies of a weight: {equation}"
            )
        if equation.primitive.name == "dot_general":
            sides = [tuple(variable.aval.shape) for variable in equation.invars]
            if set(sides) & weights:
                products += 1
                assert equation.params["dimension_numbers"][1] == ((), ()), equation
                rows = next(shape for shape in sides if shape not in weights)
                assert rows[:3] == (MEMBERS, BATCH, LENGTH) or rows[:2] in ((MEMBERS, 2), (2, MEMBERS)), rows  # or DoRA's A of rank 2
    assert products >= 2 * 7  # seven kernels a layer, forward and backward
    compiled = jax.jit(POPULATION).lower(stacked, frozen, batch).compile().as_text()
    made = {tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", compiled)}
    assert not made & copied


# One layer at a time is sliced out of the stack: eight layers, so that a slice is small beside the base.
LARGE = DecoderConfig(vocab_size=512, width=256, layers=8, heads=4, kv_heads=2, head_size=64, ff=1024)


@pytest.mark.parametrize(
    ("method", "holds"),
    [(lora(rank=4), False), (lora(rank=4, dora=True), False), (pfeiffer(size=8), False), (full(), True)],
)
def test_no_gradient_of_the_frozen_base_is_held(method, holds):
    abstract = abstract_params(LARGE)
    trainable, frozen = partition(jax.eval_shape(lambda params: attach(params, [method], KEY), abstract))
    optimiser, model = adamw(), Decoder(LARGE)
    state = jax.eval_shape(lambda t: new_state(t, optimiser, KEY), trainable)
    step = jax.jit(make_step(model, optimiser), donate_argnums=0)
    compiled = step.lower(state, frozen, train_batch(1, 8)).compile()
    base_bytes = size(abstract)[1]
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert (temporary > base_bytes / 2) if holds else (temporary < base_bytes / 4), (
        f"{temporary:,} of {base_bytes:,} bytes"
    )


def test_the_house_step_trains_and_donates():
    params = attach(base(), METHODS["lora"], KEY)
    first = partition(params)[0]["blocks"]["attn"]["q"]["kernel"].a
    state, _, metrics = train(params, steps=2)
    assert first.is_deleted() and state.step == 2
    assert metrics[0]["tokens"] == BATCH * LENGTH
