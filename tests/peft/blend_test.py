"""Adapters mixed in the space of their deltas: what is exact is exact, what is not says by how much, and nothing is half done."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BIASED, TIED, TINY, base, equal_trees, logits, moved, shapes

from peftjax.nn.tree import flatten, get, put
from peftjax.peft.attach import adapters, attach
from peftjax.peft.blend import blend, blend_changes, to_lora
from peftjax.peft.bottleneck import pfeiffer
from peftjax.peft.changes import changes
from peftjax.peft.compose import compose
from peftjax.peft.composition import Average, Split, Stack
from peftjax.peft.dense_delta import DenseDelta, dense_delta
from peftjax.peft.factored import dense
from peftjax.peft.hira import hira
from peftjax.peft.ia3 import ia3
from peftjax.peft.lora import LoRA, lora
from peftjax.peft.merge import merge
from peftjax.peft.mixing import cat, dare, linear, prune, slerp, ties
from peftjax.peft.parts import bitfit, full
from peftjax.peft.vera import vera

KEY = jax.random.key(0)
TONE = lora(rank=2, alpha=3, targets=["q_proj", "up_proj"], rank_pattern={"blocks/1/attn/q": 3}, name="tone")
TASK = lora(rank=3, alpha=12, rslora=True, targets=["q_proj", "down_proj"], name="task")


def tree(*methods, config=TINY):
    return moved(attach(base(config), methods, KEY))


def deltas(params, names=None, config=TINY):
    """Merged kernels less those of the base, by path."""
    after, before = flatten(merge(params, names)), flatten(base(config))
    return {path: np.asarray(after[path] - before[path]) for path in before if path.endswith("/kernel")}


def close(found, wanted, atol=2e-6):
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], atol=atol, err_msg=path)


@pytest.mark.parametrize("way", [linear(), cat(), ties(density=1.0), prune(density=1.0), dare(density=1.0)], ids=repr)
@pytest.mark.parametrize("method", [TONE, vera(rank=3, targets="q_proj"), hira(rank=2, targets="q_proj")], ids=["lora", "vera", "hira"])
def test_a_merge_of_one_with_weight_1_is_that_one(way, method):
    """HF PEFT's older SVD merges let the scale in twice, which alpha = rank hides."""
    params = tree(method)
    made = blend(params, {method.name: 1.0}, way)
    assert adapters(made.params) == ["merged"] and made.certificate.is_exact
    close(deltas(made.params), deltas(params))


@pytest.mark.parametrize("way", [linear(), cat()], ids=repr)
def test_a_linear_merge_is_the_weighted_sum_of_the_deltas(way):
    """HF PEFT sums A and B apart, which leaves cross terms; ranks, scales and targets differ here."""
    params = tree(TONE, TASK)
    made = blend(params, {"tone": 0.75, "task": -2.0}, way)
    tone, task = deltas(params, ["tone"]), deltas(params, ["task"])
    close(deltas(made.params), {path: 0.75 * tone[path] - 2 * task[path] for path in tone}, atol=5e-6)
    assert made.certificate.is_exact and made.certificate.total < 1e-6
    assert {key: error.rank for key, error in made.certificate.kernels.items() if "/attn/" in key} == {
        "blocks/0/attn/q/kernel": 5, "blocks/1/attn/q/kernel": 6
    }


def test_rows_past_the_rank_of_a_layer_are_zero_in_both_factors():
    node = get(blend(tree(TONE, TASK), {"tone": 1.0, "task": 1.0}).params, "blocks/attn/q/kernel")
    assert node.a.shape == (2, 6, 16) and not node.a[0, 5:].any() and not node.b[0, 5:].any() and node.a[1].any(axis=-1).all()


def test_adapters_that_are_not_mixed_stay_and_the_input_is_not_touched():
    params = tree(TONE, TASK, pfeiffer(size=3, name="beside"))
    before = dict(flatten(params))
    made = blend(params, {"tone": 1.0}, name="new")
    assert adapters(made.params) == ["beside", "new", "task"] and all(flatten(params)[path] is before[path] for path in before)
    np.testing.assert_allclose(logits(made.params), logits(params), atol=1e-5)


@pytest.mark.parametrize("way", [linear(), cat(), slerp(), ties(density=0.5), dare(density=0.5, seed=3)], ids=repr)
def test_the_methods_make_room_for_what_was_made(way):
    made = blend(tree(TONE, TASK), {"tone": 0.25, "task": 0.75}, way)
    assert shapes(attach(base(), made.methods, KEY)) == shapes(made.params)
    assert way == linear() or {type(m) for m in made.methods} == ({lora} if way in (cat(), slerp()) else {dense_delta})


def test_what_no_low_rank_holds_is_dense_and_exact_or_of_a_rank_and_measured():
    params, weights = tree(TONE, TASK), {"tone": 1.0, "task": 1.0}
    exact, cut = blend(params, weights, ties(density=0.5)), blend(params, weights, ties(density=0.5), rank=4)
    assert isinstance(get(exact.params, "blocks/attn/q/kernel"), DenseDelta) and exact.certificate.is_exact
    assert isinstance(get(cut.params, "blocks/attn/q/kernel"), LoRA) and not cut.certificate.is_exact
    asked, found = deltas(exact.params), deltas(cut.params)
    for key, error in cut.certificate.kernels.items():
        _, layer, rest = key.split("/", 2)
        there = asked[f"blocks/{rest}"][int(layer)]
        measured = np.linalg.norm(found[f"blocks/{rest}"][int(layer)] - there) / np.linalg.norm(there)
        assert measured == pytest.approx(error.relative, abs=1e-5) and error.rank == 4 and error.relative > 0.01
    assert "not exact: " in str(cut.certificate) and "exact to rounding" in str(exact.certificate)
    with pytest.raises(ValueError, match="an error of .* is above the 0.01 that is allowed"):
        cut.certificate.require(0.01)


def test_a_tolerance_gives_the_smallest_ranks_within_it():
    params = tree(TONE, TASK)
    loose, tight = (to_lora(blend(params, {"tone": 1.0, "task": 1.0}).params, "merged", tolerance=t).certificate for t in (0.5, 0.05))
    assert all(error.relative <= 0.5 for error in loose.kernels.values()) and all(e.relative <= 0.05 for e in tight.kernels.values())
    assert sum(e.rank for e in loose.kernels.values()) < sum(e.rank for e in tight.kernels.values())


def test_two_doras_add_up_as_deltas_with_their_error_measured():
    """HF PEFT merges their factors, and magnitudes of the first: some per cent off. They cannot be both active on one kernel."""
    methods = [dataclasses.replace(lora(rank=2, alpha=3, targets="q_proj", dora=True), name=name) for name in ("one", "two")]
    with pytest.raises(ValueError, match="DoRA cannot stand on"):
        attach(base(), methods, KEY)
    trees = [tree(method) for method in methods]
    found = {method.name: changes(params, method.name) for method, params in zip(methods, trees, strict=True)}
    wanted = {path: a + 0.5 * b for (path, a), b in zip(deltas(trees[0]).items(), deltas(trees[1]).values(), strict=True)}
    exact = blend_changes(base(), found, {"one": 1.0, "two": 0.5})
    close(deltas(exact.params), wanted)
    assert exact.certificate.is_exact
    cut = blend_changes(base(), found, {"one": 1.0, "two": 0.5}, rank=4)
    error = np.linalg.norm(deltas(cut.params)["blocks/attn/q/kernel"] - wanted["blocks/attn/q/kernel"])
    assert error / np.linalg.norm(wanted["blocks/attn/q/kernel"]) == pytest.approx(cut.certificate.total, rel=1e-3) and error > 1e-3


@pytest.mark.parametrize("config", [TINY, BIASED], ids=["no bias", "biased"])
def test_a_bias_that_comes_with_a_kernel_is_mixed_too(config):
    methods = lora(rank=2, alpha=3, targets="q_proj", lora_bias=True, name="tone"), TASK
    params = tree(*methods, config=config)
    made = blend(params, {"tone": 2.0, "task": 1.0})
    assert [m.lora_bias for m in made.methods] == [False, True]  # on down_proj there is none
    after, before = merge(made.params), base(config)
    own = get(before, "blocks/attn/q/bias", jnp.zeros((2, 24)))
    tone = get(merge(params, ["tone"]), "blocks/attn/q/bias") - own
    np.testing.assert_allclose(get(after, "blocks/attn/q/bias") - own, 2 * tone, atol=1e-5)


def test_a_transform_takes_the_bias_beside_it_along():
    params = tree(ia3(targets=("v_proj",), feedforward=()), config=BIASED)
    made = to_lora(params, "default")
    np.testing.assert_allclose(logits(made.params, BIASED), logits(params, BIASED), atol=1e-4)
    assert adapters(made.params) == ["default"] and made.certificate.is_exact


@pytest.mark.parametrize("apart", [False, True], ids=["tied", "apart"])
def test_embeddings_and_heads_are_mixed_as_each_adapter_has_them_alone(apart):
    embed = lora(rank=2, targets="embed_tokens", ensure_weight_tying=not apart, name="embed")
    head = lora(rank=3, targets="lm_head", name="head")
    trees = {method.name: tree(method, config=TIED) for method in (embed, head)}
    found = {name: changes(params, name) for name, params in trees.items()}
    made = blend_changes(base(TIED), found, {"embed": 1.0, "head": 2.0})
    merged, alone, other = merge(made.params), merge(trees["embed"]), merge(trees["head"])
    before = base(TIED)["embed"]["embedding"]
    np.testing.assert_allclose(merged["embed"]["embedding"], alone["embed"]["embedding"], atol=1e-5)
    wanted = other["head"]["kernel"] - before.T
    follower = 0 if apart else alone["embed"]["embedding"].T - before.T
    np.testing.assert_allclose(merged["head"]["kernel"] - before.T, 2 * wanted + follower, atol=1e-5)
    assert shapes(attach(base(TIED), made.methods, KEY)) == shapes(made.params)
    alone = blend(trees["embed"], {"embed": 1.0})
    np.testing.assert_allclose(logits(alone.params, TIED), logits(trees["embed"], TIED), atol=1e-4)
    assert shapes(attach(base(TIED), alone.methods, KEY)) == shapes(alone.params)


def test_a_stack_that_is_cut_otherwise_is_named_with_the_cut():
    found = {"high": changes(moved(attach(base(TINY, (1, 1)), [lora(rank=2, layers=[1])], KEY)), "default")}
    with pytest.raises(ValueError, match=r"changes on layers \[1\] are part of the scanned stack blocks .*segments=\(1, 1\)"):
        blend_changes(base(), found, {"high": 1.0})
    made = blend_changes(base(TINY, (1, 1)), found, {"high": 1.0})
    assert shapes(attach(base(TINY, (1, 1)), made.methods, KEY)) == shapes(made.params)


@pytest.mark.parametrize("field", ["a", "b", "scale"])
def test_a_number_that_is_not_finite_is_named_and_leaves_nothing_half_done(field):
    """HF PEFT leaves the earlier layers merged."""
    params = tree(TONE, TASK)
    node = get(params, "blocks/attn/q/kernel")  # the last layer's, of the outer adapter
    bad = put(params, "blocks/attn/q/kernel", dataclasses.replace(node, **{field: getattr(node, field).at[1].set(jnp.nan)}))
    before, kept = {path: np.array(leaf) for path, leaf in flatten(base()).items()}, dict(flatten(bad))
    with pytest.raises(ValueError, match="blocks/1/attn/q/kernel: adapter 'task' holds numbers that are not finite; nothing was changed"):
        blend(bad, {"tone": 1.0, "task": 1.0})
    equal_trees(base(), before), [kept[path] is leaf for path, leaf in flatten(bad).items()]


@pytest.mark.parametrize(("method", "message"), [
    (pfeiffer(size=3), "blocks/mlp_out/default: a network at a site changes no weight"),
    (bitfit(add=True), "blocks/attn/k/bias: 'default' trains a vector here"),
    (full(), "blocks/attn_norm/scale: 'default' trains a vector here"),
], ids=lambda value: type(value).__name__)
def test_what_is_no_change_of_a_matrix_is_refused_by_its_path(method, message):
    with pytest.raises(TypeError, match=message):
        blend(tree(method), {"default": 1.0})


def test_the_change_of_a_trained_weight_becomes_an_adapter():
    params = tree(full(targets="q_proj"))
    made = to_lora(params, "default")
    close(deltas(made.params), deltas(params), atol=5e-6)
    assert made.certificate.kernels["blocks/0/attn/q/kernel"].rank == 16


def test_a_base_of_few_bits_does_not_round_a_delta():
    """merge() gives a weight in the base's dtype; a delta is taken before that."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base())
    params = moved(attach(half, [lora(rank=2, targets="q_proj", dora=True)], KEY), size=1e-3)
    change = changes(params, "default")["blocks/0/attn/q/kernel"].read()
    node = get(params, "blocks/attn/q/kernel")
    one = jax.tree.map(lambda leaf: leaf[0], dataclasses.replace(node, base=node.base.astype(jnp.float32)))
    np.testing.assert_allclose(dense(change.weight), one.merge() - one.base, atol=1e-6)
    assert 0 < np.abs(dense(change.weight)).max() < 0.05


@pytest.mark.parametrize(("asked", "message"), [
    (lambda p: blend(p, {"tune": 1.0}), "no adapter is called 'tune'; the tree holds task, tone"),
    (lambda p: blend(p, {}), "weights are of none, adapters are none"),
    (lambda p: blend(p, {"tone": float("inf")}), "are not finite"),
    (lambda p: blend(p, {"tone": 1.0}, name="task"), "the tree holds an adapter called 'task'"),
    (lambda p: to_lora(p, "tone", to="task"), "the tree holds an adapter called 'task'"),
    (lambda p: to_lora(p, "tone", 3, tolerance=0.1), r"a rank \(3\) or a tolerance \(0.1\) says how much"),
    (lambda p: to_lora(p, "tone", 0), "rank 0 is not positive"),
    (lambda p: blend(p, {"tone": 1.0, "task": 1.0}, slerp()), "slerp goes from one adapter to another"),
    (lambda p: blend_changes(base(TIED), {"t": {"blocks/5/attn/q/kernel": changes(p, "tone")["blocks/1/attn/q/kernel"]}}, {"t": 1.0}),
     "this base has no blocks/5/attn/q/kernel"),
])
def test_what_cannot_be_asked_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        asked(tree(TONE, TASK))


@pytest.mark.parametrize("plan", [Stack(Average("tone", "task"), "style"), Split(Stack("tone", "task"), sizes=(5,))], ids=["kept", "alone"])
def test_adapters_of_a_composed_tree_are_blended_as_in_a_plain_one(plan):
    params = tree(TONE, TASK, *([lora(rank=1, targets="v_proj", name="style")] if isinstance(plan, Stack) else []))
    one, other = (blend(p, {"tone": 0.5, "task": 0.5}, ties(density=0.5)) for p in (params, compose(params, plan)))
    assert adapters(other.params) == adapters(one.params)
    close(deltas(other.params), deltas(one.params))


@pytest.mark.parametrize("way", [linear(), ties(density=0.5), slerp()], ids=repr)
def test_a_blend_is_an_adapter_that_composes(way):
    """Beside a third one, which stays: `Average` is the linear way, at every call; other ways are found once."""
    other = lora(rank=1, targets=["v_proj", "down_proj"], name="style")
    params = tree(TONE, TASK, other)
    made = blend(params, {"tone": 0.5, "task": 0.5}, way)
    assert adapters(made.params) == ["merged", "style"]
    found = logits(compose(made.params, Stack("merged", "style")))
    np.testing.assert_allclose(found, logits(merge(made.params)), atol=2e-5)
    mean = logits(compose(params, Stack(Average("tone", "task"), "style")))
    assert (np.abs(found - mean).max() < 2e-5) == (way == linear())
