"""A row of a mixed batch is the row of its adapter alone, and a row without an adapter is the base's, in both forms of the product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TIED, TINY, base, equal_trees, moved, run, tokens

from peftjax.models.decoder import Decoder, cut
from peftjax.models.generate import generate_ids
from peftjax.nn.kernels import dot
from peftjax.nn.quant import Int8, quantise
from peftjax.nn.tree import get, put
from peftjax.peft.adalora import adalora
from peftjax.peft.attach import attach, cut_points, detach
from peftjax.peft.bank import SHARED_BY, choose
from peftjax.peft.bottleneck import bottleneck, houlsby, pfeiffer, scaled_parallel
from peftjax.peft.compose import compose
from peftjax.peft.composition import Average
from peftjax.peft.lora import lora
from peftjax.peft.parts import norm_only
from peftjax.peft.stacking import stack_adapters

KEY = jax.random.key(0)
EVERYWHERE = ("embed_out", "attn_in", "attn_out", "mlp_in", "block_out", "final_out")
METHODS = {
    "lora": (lora(rank=2, alpha=3),),
    "larger lora": (lora(rank=5, targets="q_proj", lora_bias=True),),
    "patterns": (lora(rank=2, rank_pattern={"blocks/1/.*": 3, "down_proj": 1}, targets=["all-linear", "embed_tokens"]),),
    "head": (lora(rank=2, targets=["v_proj", "lm_head"]),),
    "apart": (lora(rank=2, targets=["embed_tokens", "q_proj"], ensure_weight_tying=False),),
    "houlsby": (houlsby(size=3),),
    "pfeiffer": (pfeiffer(size=5),),
    "everywhere": (bottleneck(size=2, sites=EVERYWHERE, reads="output", norm="both", scale="channel", activation="gelu"),),
    "mixed": (lora(rank=2, name="tone"), lora(rank=1, targets="q_proj", name="task"), houlsby(size=3), scaled_parallel(size=2, name="x")),
    "relatives": (lora(rank=2, init="pissa", targets="q_proj", name="x"), lora(rank=2, freeze_a=True, targets="v_proj", name="y"),
                  adalora(rank=2, target_rank=1, targets="up_proj", name="z")),
    "upper layer": (lora(rank=3, layers=[1], targets=["q_proj", "up_proj"]), pfeiffer(size=2, layers=[1])),
}
NAMES = list(METHODS)


@functools.cache
def tree(name):
    methods = METHODS[name]
    return moved(attach(cut(base(TIED), TIED, cut_points(methods, TIED.layers)), methods, KEY), 0.3)


@functools.cache
def alone(name):
    """Logits of IDS by one adapter, or by the base."""
    segments = cut_points(METHODS[name], TIED.layers) if name else ()
    return np.asarray(run(tree(name) if name else base(TIED), IDS, Decoder(TIED, segments=segments)))


@functools.cache
def bank(*names, segments=()):
    return stack_adapters(cut(base(TIED), TIED, segments), [tree(name) for name in names])


def mixed(params, ids, numbers, **options):
    return np.asarray(run(choose(params, numbers), ids, Decoder(TIED, **options)))


NUMBERS = [*reversed(range(len(NAMES))), -1] * SHARED_BY
IDS = tokens(len(NUMBERS), 3)


@pytest.mark.slow  # compiles each adapter alone: fifteen seconds
@pytest.mark.parametrize("rows", [len(NAMES) + 1, len(NUMBERS)], ids=["picked", "pooled"])
def test_each_row_is_that_of_its_adapter_alone(rows):
    got = mixed(bank(*NAMES), IDS[:rows], NUMBERS[:rows])
    for number in range(-1, len(NAMES)):
        want = alone(NAMES[number] if number >= 0 else None)[:rows]
        own = np.array(NUMBERS[:rows]) == number
        np.testing.assert_allclose(got[own], want[own], rtol=1e-4, atol=1e-5, err_msg=str(number))
        assert np.abs(got[~own] - want[~own]).max(axis=(1, 2)).min() > 1e-2


@pytest.mark.parametrize("rows", [3, 3 * SHARED_BY])
def test_rows_without_an_adapter_are_the_base(rows):
    np.testing.assert_allclose(mixed(bank("mixed", "head"), IDS[:rows], [-1] * rows), alone(None)[:rows], rtol=1e-6, atol=1e-6)


def test_other_numbers_are_no_other_program_and_may_be_traced():
    params, ids = bank("lora", "pfeiffer"), tokens()
    traced = jax.jit(lambda numbers: Decoder(TIED).apply({"params": choose(params, numbers)}, ids))
    for numbers in ([0, 1, -1], [1, 1, 0]):
        np.testing.assert_allclose(traced(jnp.array(numbers)), mixed(params, ids, numbers), rtol=1e-5, atol=1e-6)
    assert traced._cache_size() == 1


@pytest.mark.slow  # two models of three adapters, the ways compared: six seconds
def test_gathered_once_is_gathered_in_each_step():
    params, numbers = bank("lora", "houlsby", "patterns"), [2, 0, -1]
    once, anew = (Decoder(TIED).apply({"params": choose(params, numbers, gather=gather)}, IDS[:3]) for gather in (True, False))
    np.testing.assert_allclose(once, anew, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # two models of three adapters: six seconds
def test_stacks_may_be_cut():
    ids, numbers = tokens(), [0, 2, 1]
    names = ("upper layer", "mixed", "patterns")
    got = mixed(bank(*names, segments=(1, 1)), ids, numbers, segments=(1, 1))
    np.testing.assert_allclose(got, mixed(bank(*names), ids, numbers), rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # a program for each adapter alone: seven seconds
def test_greedy_texts_of_a_mixed_batch():
    names, prompts = ("lora", "houlsby", "head"), [[3, 1, 4], [1], [5, 9, 2, 6, 5], [3, 5], [3, 1, 4]]
    numbers = np.array([1, -1, 0, 2, 0])
    got = generate_ids(
        Decoder(TIED), bank(*names), prompts, -1, max_new=5, batch_size=3, for_rows=lambda params, rows: choose(params, numbers[rows])
    )
    for prompt, number, ids in zip(prompts, numbers, got, strict=True):
        own = tree(names[number]) if number >= 0 else base(TIED)
        assert generate_ids(Decoder(TIED), own, [prompt], -1, max_new=5)[0] == ids
    assert got[0] != got[4]


def test_quantised_bases_stay_as_they_are():
    params = base(TINY)
    for path in ("blocks/attn/q/kernel", "blocks/mlp/down/kernel"):
        params = put(params, path, quantise(get(params, path), "int8"))
    trees = [moved(attach(params, (lora(rank=rank),), jax.random.key(rank))) for rank in (1, 3)]
    held, ids = stack_adapters(params, trees), tokens()
    assert isinstance(get(held, "blocks/attn/q/kernel").base, Int8)
    got = np.asarray(run(choose(held, [1, 0, -1]), ids, Decoder(TINY)))
    for row, own in enumerate([trees[1], trees[0], params]):
        np.testing.assert_allclose(got[row], np.asarray(run(own, ids, Decoder(TINY)))[row], rtol=1e-4, atol=1e-5)


def test_relatives_of_lora_are_in_it_as_what_they_are_as_functions():
    x, held, own = jax.random.normal(KEY, (1, 3, TIED.width)), choose(bank("relatives"), [0]), tree("relatives")
    for path, rank in (("blocks/attn/q/kernel", 4), ("blocks/attn/v/kernel", 2), ("blocks/mlp/up/kernel", 2)):
        one, alone = (jax.tree.map(lambda leaf: leaf[0], get(params, path)) for params in (held, own))
        assert one.a.shape[-2] == rank
        np.testing.assert_allclose(dot(x, one), dot(x, alone), rtol=1e-4, atol=1e-5)


def test_a_bank_is_taken_off_again():
    equal_trees(detach(bank("lora", "houlsby")), base(TIED))


def test_what_fits_nowhere_is_refused():
    params = bank("lora")
    with pytest.raises(ValueError, match=r"no adapter has the numbers \[-2, 3\]; the bank has 0 to 0"):
        choose(params, [3, 0, -2])
    with pytest.raises(ValueError, match="no bank is in this tree, whose adapters are default"):
        choose(tree("lora"), [0])
    with pytest.raises(ValueError, match="no row has an adapter yet; choose"):
        run(params, tokens(), Decoder(TIED))
    with pytest.raises(ValueError, match="adapters were chosen for 2 rows, and the batch has 3"):
        run(choose(params, [0, 0]), tokens(), Decoder(TIED))
    with pytest.raises(ValueError, match="at least one tree"):
        stack_adapters(base(TIED), [])
    with pytest.raises(ValueError, match="base holds adapters"):
        stack_adapters(tree("lora"), [tree("lora")])
    with pytest.raises(TypeError, match="adapter 1 has Trained 'default' at blocks/attn_norm/scale; a bank holds LoRA and bottlenecks"):
        stack_adapters(base(TIED), [tree("lora"), attach(base(TIED), (norm_only(),), KEY)])
    with pytest.raises(TypeError, match="DoRA 'default' at blocks/attn/k/kernel"):
        stack_adapters(base(TIED), [attach(base(TIED), (lora(dora=True),), KEY)])
    both = compose(attach(base(TIED), (lora(name="a"), lora(name="b")), KEY), Average("a", "b"))
    with pytest.raises(TypeError, match="adapters of tree 0 are composed at blocks/attn/k/kernel; a bank holds what acts one after"):
        stack_adapters(base(TIED), [both])
    with pytest.raises(TypeError, match="no one dense weight"):
        get(params, "blocks/attn/q/kernel").merge()
