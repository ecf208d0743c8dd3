"""Inits that read the weight or data keep the base: their parts are what the papers say, the start is the base, they export as plain."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, base, equal_trees, logits, moved, noise, run, tokens, train_batch

from peftjax.models.decoder import Decoder
from peftjax.nn.kernels import dense, dot
from peftjax.nn.quant import Scheme, quantise
from peftjax.nn.tree import flatten, get, put, walk
from peftjax.peft.attach import attach, detach
from peftjax.peft.initialise import initialise, loftq, qpissa, wanted
from peftjax.peft.inits import factors, parse, principal
from peftjax.peft.lora import LoRA, lora
from peftjax.peft.merge import merge
from peftjax.peft.partition import partition
from peftjax.peft.plain import as_plain
from peftjax.peft.probe import Statistics, measure
from peftjax.peft.shifted import ShiftedLoRA
from peftjax.train.loss import token_losses

KEY = jax.random.key(0)
W = noise("w", jax.ShapeDtypeStruct((7, 10), jnp.float32))
X = noise("x", jax.ShapeDtypeStruct((50, 7), jnp.float32)) * jnp.broadcast_to(jnp.arange(1.0, 8.0), (50, 7))
G = noise("g", jax.ShapeDtypeStruct((7, 10), jnp.float32))
SCALE = jnp.float32(1.5)
FOUND = Statistics(X.T @ X, jnp.sum(X, 0), jnp.float32(50), G)
SHIFTING = ("pissa", "pissa_niter_8", "pissa_random", "milora", "olora", "corda_ipm", "corda_kpm", "lora_ga")
PATH = "blocks/attn/q/kernel"


def started(name: str, rank: int = 2):
    return factors(parse(name), W, SCALE, rank, KEY, FOUND)


def part(name: str, rank: int = 2):
    a, b = started(name, rank)
    return SCALE * a.T @ b


def singular(matrix):
    left, values, right = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return left, values, right


@pytest.mark.parametrize("name", ["pissa", "pissa_niter_8"])
def test_pissa_is_the_largest_part_of_the_weight_shared_out_evenly(name):
    left, values, right = singular(W)
    if name == "pissa":
        np.testing.assert_allclose(part(name), (left[:, :2] * values[:2]) @ right[:2], atol=1e-4)
    assert jnp.linalg.norm(W - part(name)) < 1.001 * np.linalg.norm(values[2:])
    a, b = started(name)
    np.testing.assert_allclose(jnp.linalg.norm(a, axis=1), jnp.linalg.norm(b, axis=1), rtol=1e-4)


def test_milora_is_the_smallest_part_of_the_weight_shared_out_evenly():
    left, values, right = singular(W)
    np.testing.assert_allclose(part("milora"), (left[:, 5:] * values[5:]) @ right[5:], atol=1e-4)
    np.testing.assert_allclose(part("milora", 7), W, atol=1e-4)
    a, b = started("milora")
    np.testing.assert_allclose(jnp.linalg.norm(a, axis=1), jnp.linalg.norm(b, axis=1), rtol=1e-3)


def test_the_control_of_pissa_has_its_values_along_directions_of_a_key_and_not_of_the_weight():
    (a, b), (like_a, like_b) = started("pissa_random"), started("pissa")
    for own, other in ((a, like_a), (b, like_b)):
        np.testing.assert_allclose(own @ own.T, other @ other.T, atol=1e-4)  # orthogonal rows of PiSSA's lengths
    np.testing.assert_allclose(singular(part("pissa_random"))[1][:2], singular(W)[1][:2], rtol=1e-4)
    drawn = jax.vmap(lambda seed: factors(parse("pissa_random"), W, SCALE, 2, jax.random.key(seed))[0])(jnp.arange(400))
    along = np.square(drawn @ singular(W)[0][:, 0]) / np.sum(np.square(drawn), -1)
    assert abs(np.mean(along) - 1 / 7) < 0.02  # the square of the cosine with the first direction of W is that of chance


def test_olora_has_orthonormal_rows_in_b_and_all_of_the_weight_at_full_rank():
    _, b = started("olora")
    np.testing.assert_allclose(b @ b.T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(part("olora", 7), SCALE * W, atol=1e-4)


def test_corda_weighs_directions_by_the_inputs_and_is_all_of_the_weight_at_full_rank():
    for name in ("corda_ipm", "corda_kpm"):
        np.testing.assert_allclose(part(name, 7), W, atol=1e-3)
    square = np.asarray(X.T @ X, np.float64) / 50
    fixed = square + 0.01 * np.mean(np.diag(square)) * np.eye(7)
    left, values, right = singular(fixed @ np.asarray(W))
    inverse = np.linalg.inv(fixed)
    np.testing.assert_allclose(part("corda_ipm"), inverse @ (left[:, :2] * values[:2]) @ right[:2], atol=1e-3)
    np.testing.assert_allclose(part("corda_kpm"), inverse @ (left[:, 5:] * values[5:]) @ right[5:], atol=1e-3)
    lost = {name: float(jnp.linalg.norm(X @ (W - part(name)))) for name in ("corda_ipm", "pissa", "corda_kpm")}
    assert lost["corda_ipm"] < lost["pissa"] < lost["corda_kpm"]  # ipm is made to keep what the inputs see


def test_lora_ga_starts_along_different_singular_directions_of_the_gradient():
    left, _, right = singular(G)
    wanted_at = {"ArB2r": ([0, 1], [2, 3]), "A2rBr": ([2, 3], [0, 1]), "ArBr": ([1, 3], [0, 2])}
    for direction, (of_a, of_b) in wanted_at.items():
        a, b = started(f"lora_ga_{direction}_unit")
        np.testing.assert_allclose(np.abs(a @ left[:, of_a]), np.eye(2), atol=1e-4)
        np.testing.assert_allclose(np.abs(b @ right[of_b].T), np.eye(2), atol=1e-4)
    sizes = {"unit": 1, "gd_scale": 1 / 1.5, "stable": 10**0.25 / 4, "weight_svd": np.mean(np.sqrt(singular(W)[1][:2] / 1.5))}
    for name, size in sizes.items():
        for factor in started(f"lora_ga_ArB2r_{name}"):
            np.testing.assert_allclose(jnp.linalg.norm(factor, axis=1), [size] * 2, rtol=1e-4)
    a, b = started("lora_ga_random_unit")
    both = np.concatenate([np.abs(a @ left).argmax(1), np.abs(b @ right.T).argmax(1)])
    assert sorted(both) == [0, 1, 2, 3]  # no direction is in both, or their product would not be zero along it


@functools.cache
def golden():
    """Of tests/golden/make_inits_golden.py."""
    return dict(np.load(Path(__file__).parents[1] / "golden" / "inits" / "golden.npz"))


def beside_golden(name):
    """(a, b by HF PEFT's code, a, b by ours) of the golden weight, rows along the rank."""
    theirs, x, slopes = golden(), jnp.asarray(golden()["x"]), jnp.asarray(golden()["slopes"])
    found = Statistics(x.T @ x, jnp.sum(x, 0), jnp.float32(len(x)), x.T @ slopes)
    a, b = factors(parse(name), jnp.asarray(theirs["weight"].T), SCALE, len(theirs[f"{name}/a"]), KEY, found)
    return theirs[f"{name}/a"], theirs[f"{name}/b"].T, np.asarray(a), np.asarray(b)


@pytest.mark.parametrize("name", ["pissa", "olora", "corda_ipm", "corda_kpm"])
def test_parts_of_the_weight_are_those_that_hf_peft_takes(name):
    a, b, own_a, own_b = beside_golden(name)
    np.testing.assert_allclose(own_a.T @ own_b, a.T @ b, rtol=1e-3, atol=1e-4)
    ratios = [np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1) for ours, theirs in ((own_a, a), (own_b, b))]
    np.testing.assert_allclose(ratios[0] * ratios[1], 1, rtol=1e-3)
    size = 1.0
    if name.startswith("corda"):  # theirs are of inputs over the largest, summed over tokens
        size = (len(golden()["x"]) / np.max(golden()["x"]) ** 2) ** 0.5
    np.testing.assert_allclose(ratios[0], size, rtol=1e-3)


@pytest.mark.parametrize("name", ["lora_ga_ArB2r_unit", "lora_ga_A2rBr_unit", "lora_ga_ArBr_unit", "lora_ga_ArB2r_gd_scale",
                                  "lora_ga_ArB2r_stable"])
def test_directions_of_the_gradient_are_those_that_hf_peft_takes(name):
    """Where its b has the gradient's singular values besides, and "stable" is of b alone; the paper and its authors scale both alike."""
    a, b, own_a, own_b = beside_golden(name)
    values = np.linalg.svd(golden()["x"].T @ golden()["slopes"], compute_uv=False)
    of_b = {"ArB2r": slice(2, 4), "A2rBr": slice(0, 2), "ArBr": slice(0, 4, 2)}[name.split("_")[2]]
    size = golden()["weight"].shape[0] ** 0.25 / 4 if name.endswith("stable") else 1.0
    np.testing.assert_allclose(np.abs(own_a), np.abs(a) * size, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.abs(own_b) * values[of_b, None], np.abs(b), rtol=1e-3, atol=1e-3)


def test_principal_directions_are_those_of_centred_inputs():
    directions, shares = principal(FOUND.covariance(), 3)
    _, values, right = singular(X - jnp.broadcast_to(jnp.mean(X, 0), X.shape))
    np.testing.assert_allclose(np.abs(directions @ right[:3].T), np.eye(3), atol=1e-3)
    np.testing.assert_allclose(shares, (values**2 / np.sum(values**2))[:3], rtol=1e-3)


@pytest.mark.parametrize("name", SHIFTING)
def test_the_start_is_the_base_and_all_forms_are_one_function(name):
    a, b = started(name)
    node = ShiftedLoRA(W, a, b, a, b, SCALE, None, "tone")
    np.testing.assert_allclose(dot(X, node), X @ W, atol=1e-5 * float(jnp.abs(X @ W).max()))
    later = dataclasses.replace(node, a=a + 0.1, b=b - 0.2)
    np.testing.assert_allclose(later.merge(), W + SCALE * (later.a.T @ later.b - a.T @ b), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dot(X, later), X @ later.merge(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(later.change(X), X @ later.delta(), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(dot(X, later.off()), dot(X, W))
    plain = as_plain({"kernel": later})["kernel"]
    assert type(plain) is LoRA and plain.a.shape == (4, 7) and plain.scale == SCALE
    np.testing.assert_array_equal(dot(X, plain), dot(X, later))


@functools.cache
def measured():
    """Statistics of the tiny base by its own loss."""

    def loss(params, batch):
        return jnp.sum(token_losses(Decoder(TINY), params, batch)[0])

    batches = [train_batch(batch=8, length=6, seed=seed) for seed in range(2)]
    return {kind: measure(loss, base(), batches, ["q_proj", "down_proj"], kind) for kind in ("inputs", "gradient")}


@pytest.mark.parametrize("name", [pytest.param("corda_kpm", marks=pytest.mark.slow), "lora_ga"])  # ten seconds and more each
def test_a_model_starts_from_its_statistics_on_its_base_and_detaches_to_it(name):
    methods = [lora(rank=2, alpha=3, init=name, targets=["q_proj", "down_proj"], rank_pattern={"blocks/1/attn/q": 3})]
    assert wanted(methods) == {parse(name).needs: ["q_proj", "down_proj"]}
    before = attach(base(), methods, KEY)
    params = initialise(before, methods, measured(), KEY)
    assert jax.tree.structure(params) == jax.tree.structure(before)
    node = get(params, PATH)
    assert node.a.shape == (2, 3, 16) and not node.a[0, 2].any() and not node.start_b[0, 2].any() and node.b[1].all()
    assert node.a is not node.start_a  # a step donates one and keeps the other
    np.testing.assert_allclose(logits(params), logits(base()), rtol=1e-4, atol=1e-5)
    trained = moved(params)
    assert np.abs(logits(trained) - logits(base())).max() > 1e-2
    np.testing.assert_allclose(logits(as_plain(trained)), logits(trained), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits(merge(trained)), logits(trained), rtol=1e-3, atol=1e-4)
    equal_trees(detach(trained), base())
    assert {path.rpartition("/")[2] for path in flatten(partition(params)[0])} == {"a", "b"}


def test_eva_shares_ranks_out_by_explained_variance_and_adds_nothing_at_the_start():
    methods = [lora(rank=2, init="eva_rho_1.5", targets=["q_proj", "down_proj"])]
    params = initialise(attach(base(), methods, KEY), methods, measured(), KEY)
    np.testing.assert_array_equal(logits(params), logits(base()))
    nodes = [get(params, path) for path in (PATH, "blocks/mlp/down/kernel")]
    ranks = np.concatenate([np.asarray(jnp.any(node.a != 0, -1).sum(-1)) for node in nodes])
    assert ranks.sum() == 8 and ranks.max() <= 3 and all(node.a.shape[1] == 3 for node in nodes)
    for path, node in zip((PATH, "blocks/mlp/down/kernel"), nodes, strict=True):
        for layer, rank in enumerate(np.asarray(jnp.any(node.a != 0, -1).sum(-1))):
            want, _ = principal(measured()["inputs"][path].covariance()[layer], int(rank))
            np.testing.assert_allclose(jnp.abs(node.a[layer, :rank] @ want.T), np.eye(rank), atol=1e-3)


@pytest.mark.parametrize("scheme", [Scheme("nf4"), Scheme("affine4"), Scheme("affine4", symmetric=True)], ids=["nf4", "int4", "signed"])
def test_loftq_and_qpissa_come_nearer_to_the_weight_with_each_round(scheme):
    """And the first round of LoftQ leaves the base bit for bit."""
    path, weight = "blocks/mlp/up/kernel", noise("up", jax.ShapeDtypeStruct((2, 64, 24), jnp.float32))
    held = {"blocks": {"mlp": {"up": {"kernel": quantise(weight, scheme)}}}}
    whole = put(held, path, weight)
    params = attach(held, [lora(rank=4, alpha=6, targets="up_proj", rank_pattern={"blocks/1/.*": 2})], KEY)

    def lost(kernel):
        return np.asarray(jnp.linalg.norm(weight - dense(kernel), axis=(1, 2)))

    for start, first in ((loftq, 0.95), (qpissa, 1.0)):
        trees = [start(params, whole, rounds=rounds) for rounds in (1, 2, 5)]
        losses = [lost(get(held, path)), *(lost(get(tree, path)) for tree in trees)]
        assert (losses[1] < first * losses[0]).all() and (losses[2] < losses[1]).all() and (losses[3] < losses[2]).all(), losses
        node = get(trees[2], path)
        assert not node.a[1, 2:].any() and node.a[0].all() and type(node.base) is type(get(held, path))
        if start is loftq:
            equal_trees(detach(trees[0]), held)
            equal_trees(initialise(params, [lora(init="loftq")], {"dense": {path: weight}}, KEY), trees[0])


def test_starts_on_quantised_weights_are_refused_where_there_are_none():
    weight = noise("up", jax.ShapeDtypeStruct((64, 24), jnp.float32))
    held = {"head": {"kernel": quantise(weight, Scheme("affine4"))}}
    params = attach(held, [lora(rank=4, targets="lm_head")], KEY)
    with pytest.raises(ValueError, match="no LoRA called 'tone' stands on a quantised weight"):
        loftq(params, put(held, "head/kernel", weight), "tone")
    with pytest.raises(ValueError, match="head/kernel has no dense weight"):
        qpissa(params, held)
    with pytest.raises(ValueError, match="head/kernel is held without loss, and LoftQ has nothing to make up for"):
        initialise(params, [lora(init="loftq")], {"dense": {"head/kernel": dense(held["head"]["kernel"])}}, KEY)
    with pytest.raises(ValueError, match="rounds 0 is not positive"):
        loftq(params, put(held, "head/kernel", weight), rounds=0)


def test_with_a_frozen_a_nothing_as_wide_as_the_input_is_kept_for_b():
    def kept(freeze):
        node = get(attach({"head": {"kernel": W}}, [lora(rank=2, targets="head", freeze_a=freeze)], KEY), "head/kernel")

        def loss(b, x):
            return jnp.sum(jnp.square(dataclasses.replace(node, b=b).dot(2 * x)))

        _, pullback = jax.vjp(loss, node.b, X)
        return [leaf.shape for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "shape")]

    assert kept(True).count(X.shape) == 0 < kept(False).count(X.shape)
    params = attach(base(), [lora(rank=2, freeze_a=True)], KEY)
    assert {path.rpartition("/")[2] for path in flatten(partition(params)[0])} == {"b"}
    np.testing.assert_array_equal(logits(as_plain(moved(params))), logits(moved(params)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "pisa"}, r"LoRA init 'pisa' is none of kaiming, .* \(did you mean 'pissa'\?\)"),
        ({"init": "pissa", "dora": True}, "LoRA init 'pissa' is for a LoRA without dora and lora_bias"),
        ({"init": "olora", "freeze_a": True}, "freeze_a needs a B that starts at zero"),
    ],
)
def test_what_does_not_go_together_is_refused_when_stated(options, message):
    with pytest.raises(ValueError, match=message):
        lora(**options)


def test_what_does_not_fit_is_refused_when_attached_or_initialised():
    with pytest.raises(ValueError, match=r"lora_ga of rank 4 takes 8 directions; a weight of shape \(7, 10\) has 7"):
        started("lora_ga", 4)
    with pytest.raises(ValueError, match="embed/embedding is an embedding"):
        attach(base(), [lora(init="pissa", targets="embed_tokens", rank=2)], KEY)
    methods = [lora(rank=2, init="eva", targets="q_proj")]
    params = attach(base(), methods, KEY)
    with pytest.raises(ValueError, match=f"init 'eva' of {PATH} needs its inputs, which were not measured"):
        initialise(params, methods, {}, KEY)
    nothing = measured()["inputs"][PATH]._replace(count=jnp.zeros(2))
    with pytest.raises(ValueError, match="no token of the batches reaches the loss from there"):
        initialise(params, methods, {"inputs": {PATH: nothing}}, KEY)


def test_the_start_of_a_cut_stack_is_that_of_the_whole():
    whole = attach(base(), [lora(rank=2, init="pissa", targets="q_proj")], KEY)
    assert all(isinstance(value, ShiftedLoRA) for path, value in walk(whole) if path == PATH)
    layers = {f"blocks_{layer}_{layer + 1}": get(base(), PATH)[layer:layer + 1] for layer in range(2)}
    cut = {stack: {"attn": {"q": {"kernel": weight}}} for stack, weight in layers.items()}
    parts = attach(cut, [lora(rank=2, init="pissa", targets="q_proj")], KEY)
    for layer, stack in enumerate(("blocks_0_1", "blocks_1_2")):
        np.testing.assert_allclose(get(parts, f"{stack}/attn/q/kernel").a[0], get(whole, PATH).a[layer], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(whole, tokens(), Decoder(TINY)), logits(base()), rtol=1e-4, atol=1e-5)
