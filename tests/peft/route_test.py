"""A row of a batch that mixes methods is that of its method alone, whatever the order; numbers are no other program; gradients are too."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BIASED, TIED, TINY, adamw, base, logits, moved, run, tokens, train_batch

from peftjax.models.decoder import Decoder
from peftjax.models.generate import generate_ids
from peftjax.nn.kernels import dot
from peftjax.nn.layers import add_bias
from peftjax.nn.shared import fill
from peftjax.nn.sites import Tokens
from peftjax.nn.tree import flatten, get, walk
from peftjax.peft.across_layers import across_layers
from peftjax.peft.attach import activate, attach
from peftjax.peft.bottleneck import houlsby, pfeiffer
from peftjax.peft.compacter import compacter
from peftjax.peft.compose import compose
from peftjax.peft.composed import Composed, ComposedEntry
from peftjax.peft.composition import BatchSplit, Parallel, Split, Stack
from peftjax.peft.gated_lora import gated_lora
from peftjax.peft.hira import hira
from peftjax.peft.ia3 import ia3
from peftjax.peft.lora import lora
from peftjax.peft.oft import oft
from peftjax.peft.outcomes import on
from peftjax.peft.partition import combine, partition
from peftjax.peft.parts import full
from peftjax.peft.prefix import prefix
from peftjax.peft.prompt import prompt_tuning
from peftjax.peft.reft import reft
from peftjax.peft.route import in_parallel, route
from peftjax.peft.vera import vera
from peftjax.train.loss import token_losses
from peftjax.train.step import make_step, new_state

KEY = jax.random.key(0)
METHODS = (
    lora(rank=2, targets=["all-linear", "embed_tokens", "lm_head"], name="lora"), houlsby(size=3, name="houlsby"), ia3(name="ia3"),
    prefix(length=2, name="prefix"), prompt_tuning(length=3, name="prompt"), pfeiffer(size=2, name="task"),
)  # fmt: skip
CHILDREN = {"lora": ["lora"], "houlsby": ["houlsby"], "ia3 with a prefix": ["ia3", "prefix"], "prompt": ["prompt"]}
ROWS = [2, 0, -1, 3, 1, 2]
IDS = tokens(len(ROWS))


@functools.cache
def attached():
    return moved(attach(base(TIED), METHODS, KEY), 0.3)


@functools.cache
def mixed():
    return compose(attached(), Stack(BatchSplit(*(Stack(*names) for names in CHILDREN.values())), "task"))


@functools.cache
def alone(number):
    names = list(CHILDREN.values())[number] if number >= 0 else []
    return logits(activate(attached(), [*names, "task"]), TIED, IDS)


def test_each_row_is_that_of_its_method_alone_in_any_order():
    """One program for both orders, whose numbers are traced."""
    program = jax.jit(lambda params, ids, rows: Decoder(TIED).apply({"params": route(params, rows)}, ids))
    for rows in (ROWS, ROWS[::-1]):
        got = program(mixed(), IDS, jnp.array(rows))
        for row, number in enumerate(rows):
            np.testing.assert_allclose(got[row], alone(number)[row], rtol=1e-5, atol=1e-5, err_msg=f"row {row}, child {number}")
    assert program._cache_size() == 1
    assert all(np.abs(alone(number) - alone(-1)).max() > 1e-2 for number in range(len(CHILDREN)))


def summed(params, batch):
    return jnp.sum(token_losses(Decoder(TINY), params, batch)[0])


TRAINED = (lora(rank=2, name="lora"), houlsby(size=3, name="houlsby"), ia3(name="ia3"), prefix(length=2, name="prefix"))


@pytest.mark.slow  # gradients of a mixed batch and of each method alone, four programs: eight seconds
def test_gradients_of_a_mixed_batch_are_those_of_each_row_alone():
    params, batch, rows = moved(attach(base(), TRAINED, KEY), 0.3), train_batch(6), np.array([1, 2, 0, 0, -1, 2])
    trainable, frozen = partition(compose(params, BatchSplit("lora", "houlsby", Stack("ia3", "prefix"))))

    def loss(trainable, rows):
        return summed(route(combine(trainable, frozen), rows), batch)

    got = flatten(jax.jit(jax.grad(loss))(trainable, rows))
    for number, names in enumerate((["lora"], ["houlsby"], ["ia3", "prefix"])):
        own, rest = partition(activate(params, names))
        part = jax.tree.map(lambda x, n=number: x[rows == n], batch)
        want = jax.jit(jax.grad(lambda t, r=rest, b=part: summed(combine(t, r), b)))(own)
        for path, leaf in flatten(want).items():
            np.testing.assert_allclose(got[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


CHOICES = {0: {"lora"}, 1: {"houlsby"}, 2: {"ia3", "prefix"}, -1: set()}


@pytest.mark.parametrize(("plan", "numbers"), [
    (BatchSplit("lora", "houlsby", Stack("ia3", "prefix")), ([0, -1, -1], [-1, 1, 1], [2, 2, -1], [1, 0, 2])),
    pytest.param(Split("lora", "houlsby", "ia3"), ([[0, 0, 0, 0, 0], [-1] * 5, [0] * 5], [[1] * 5] * 3, [[0, 1, -1, 1, 0]] * 3),
                 marks=pytest.mark.slow),  # the same by position, another program
], ids=["by row", "by position"])  # fmt: skip
def test_a_step_trains_the_methods_of_its_rows_or_positions_and_no_other_in_one_program(plan, numbers):
    params = attach(base(), TRAINED if isinstance(plan, BatchSplit) else TRAINED[:-1], KEY)
    trainable, frozen = partition(compose(moved(params, 0.3), plan))
    optimiser = adamw(decay=0.0)
    step = jax.jit(make_step(Decoder(TINY), optimiser, arrange=lambda params, batch: route(params, batch.rows)))
    state, before = new_state(trainable, optimiser, KEY), flatten(trainable)
    for chosen in numbers:
        after = flatten(step(state, frozen, RoutedBatch(train_batch(), jnp.array(chosen)))[0].trainable)
        changed = {path.split("/")[-2] for path, leaf in after.items() if np.any(leaf != before[path])}
        assert changed == set().union(*(CHOICES[number] for number in np.unique(chosen)))
    assert step._cache_size() == 1


@jax.tree_util.register_pytree_node_class
class RoutedBatch:
    """A batch whose rows have numbers."""

    def __init__(self, batch, rows):
        self.batch, self.rows = batch, rows

    def __getattr__(self, name):
        return getattr(self.batch, name)

    def tree_flatten(self):
        return (self.batch, self.rows), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def site(params, at="blocks/mlp_out"):
    return jax.tree.map(lambda leaf: leaf[0], get(params, at))


def entries():
    names = [houlsby(size=3, init="bert", name="a"), houlsby(size=2, init="bert", name="b")]
    params = moved(attach(base(), names, KEY), 0.3)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, TINY.width)), jnp.float32)
    return params, x, *(site(params, f"blocks/mlp_out/{name}")(x) for name in "ab")


def test_splits_of_known_sizes_and_copies_in_parallel():
    params, x, a, b = entries()
    by_row = site(compose(params, BatchSplit("a", "b", sizes=[3, 1])))(x)
    np.testing.assert_array_equal(by_row, np.concatenate([a[:3], b[3:]]))
    by_position = site(compose(params, Split("a", "b", sizes=[2, 3])))(x)
    np.testing.assert_array_equal(by_position, np.concatenate([a[:, :2], b[:, 2:]], axis=1))
    copies = site(compose(params, Parallel("a", "b")))(in_parallel(x, 2))
    np.testing.assert_array_equal(copies, np.concatenate([a, b]))


def test_one_product_with_the_weight_serves_all_rows():
    """Whatever methods make of its input and its output."""
    methods = [lora(rank=1, dora=True, name="d"), ia3(name="a"), oft(block_size=2, name="b"), lora(rank=2, name="c")]
    params = moved(attach(base(), methods, KEY), 0.3)
    params = route(compose(params, BatchSplit("a", Stack("b", BatchSplit("c", "b", at="inner")), "d")), [0, 1, 2], at="rows")
    node = site(route(params, [0, 0, 1], at="inner"), "blocks/mlp/down/kernel")
    x = jnp.ones((3, 4, TINY.ff))
    weights = [equation for equation in jax.make_jaxpr(jax.jit(lambda x: dot(x, node)))(x).jaxpr.eqns[0].params["jaxpr"].eqns
               if equation.primitive.name == "dot_general" and node.base.shape in [v.aval.shape for v in equation.invars]]  # fmt: skip
    assert [equation.invars[0].aval.shape for equation in weights if equation.invars[0].aval.shape[0] == 3] == [x.shape]


@pytest.mark.parametrize(("block", "ids"), [
    (BatchSplit("a", "b"), [1, -1, 0]), (BatchSplit("a", "b", sizes=[1, 2]), None), (Split("a", "b"), [[0, 1, -1, 0]] * 3),
    (Split("a", "b", sizes=[3, 1]), None),
], ids=str)  # fmt: skip
def test_a_row_has_the_bias_as_its_method_makes_it(block, ids):
    """IA3 scales a whole output, the bias beside the weight too."""
    params = compose(moved(attach(base(BIASED), [ia3(name="a"), lora(rank=2, name="b")], KEY), 0.3), block)
    module = get(params if ids is None else route(params, ids), "blocks/attn/k")
    node, bias = (jax.tree.map(lambda leaf: leaf[0], module[field]) for field in ("kernel", "bias"))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, TINY.width)), jnp.float32)
    alone = [dataclasses.replace(node.parts[name], base=node.base) for name in "ab"] + [node.base]
    each = jnp.stack([add_bias(dot(x, kernel), bias, kernel) for kernel in alone])
    if ids is None:
        ids = np.repeat([0, 1], block.sizes)
        ids = ids if isinstance(block, BatchSplit) else np.tile(ids, (3, 1))
    chosen = np.broadcast_to(np.array(ids) if isinstance(block, Split) else np.array(ids)[:, None], (3, 4))
    want = np.take_along_axis(np.asarray(each), chosen[None, :, :, None] % 3, axis=0)[0]
    np.testing.assert_allclose(add_bias(dot(x, node), bias, node), want, rtol=1e-5, atol=1e-5)


def test_positions_in_any_order_and_blocks_in_blocks():
    params, x, a, b = entries()
    places = np.array([[0, 1, -1, 0, 1], [1, 1, 1, 1, 1], [-1, -1, 0, 0, 0], [0, 0, 0, 0, 0]])
    own = [places[..., None] == number for number in (0, 1)]
    want = np.where(own[0], a, np.where(own[1], b, x))
    np.testing.assert_array_equal(site(route(compose(params, Split("a", "b")), places))(x), want)
    nested = compose(params, BatchSplit("a", Split("a", "b"), at="whose"))
    nested = route(route(nested, places, at="positions"), [0, 1, -1, 1], at="whose")
    np.testing.assert_array_equal(site(nested)(x), np.stack([a[0], want[1], x[2], want[3]]))


SHARED = across_layers(lora(rank=2), name="x")
EVERY = {
    "lora": lora(rank=2, alpha=3, lora_bias=True, name="x"), "dora": lora(rank=2, dora=True, name="x"), "hira": hira(rank=2, name="x"),
    "vera": vera(rank=2, name="x"), "oft": oft(block_size=2, name="x"), "ia3": ia3(name="x"), "full": full(targets="q_proj", name="x"),
    "gated lora": gated_lora(rank=2, name="x"), "compacter": compacter(size=4, name="x"), "reft": reft(rank=2, name="x"), "shared": SHARED,
}  # fmt: skip


@pytest.mark.slow  # every product and entry of eleven methods, not compiled: fifteen seconds
@pytest.mark.parametrize("name", EVERY)
def test_rows_of_every_kind_of_method_at_every_place(name):
    """Beside a LoRA and a bottleneck that stand wherever it does or does not."""
    others = [lora(rank=1, name="y"), houlsby(size=2, name="y")]
    params = moved(attach(base(), [EVERY[name], *others], KEY), 0.3)
    routed, places = route(compose(params, BatchSplit("x", "y")), [1, 0, -1]), 0
    for path, value in walk(routed):
        if isinstance(value, Composed | ComposedEntry):
            value, places = fill(jax.tree.map(lambda leaf: leaf[1], value), routed.get("shared", {})), places + 1
            if isinstance(value, Composed):
                x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, value.shape[0])), jnp.float32)
                apply = lambda part, x=x, base=value.base: dot(x, base if part is None else on(part, base))  # noqa: E731
                got = dot(x, value)
            else:
                x, ones = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, TINY.width)), jnp.float32), jnp.ones((3, 4), int)
                about = {"residual": x[::-1], "normed": 2 * x, "tokens": Tokens(jnp.cumsum(ones, axis=1) - 1, ones)}
                apply = lambda part, x=x, about=about: x if part is None else part(x, **about)  # noqa: E731
                got = value(x, **about)
            for row, part in enumerate(("y", "x", None)):
                np.testing.assert_allclose(got[row], apply(value.parts.get(part))[row], rtol=1e-5, atol=1e-5, err_msg=f"{path} {part}")
    assert places >= 9  # seven kernels and two sites


@pytest.mark.slow  # decoding compiles a program for each of four trees: ten seconds
def test_greedy_texts_of_a_mixed_batch():
    prompts, rows = [[3, 1, 4], [1], [5, 9, 2, 6], [3, 1, 4]], np.array([2, -1, 0, 3])
    of_rows = lambda params, which: route(params, rows[which])  # noqa: E731
    got = generate_ids(Decoder(TIED), mixed(), prompts, -1, max_new=5, batch_size=2, for_rows=of_rows)
    for prompt, number, ids in zip(prompts, rows, got, strict=True):
        names = list(CHILDREN.values())[number] if number >= 0 else []
        own = activate(attached(), [*names, "task"])
        assert generate_ids(Decoder(TIED), own, [prompt], -1, max_new=5)[0] == ids


def test_what_fits_nowhere_is_refused():
    params, x, *_ = entries()
    rows, places = compose(params, BatchSplit("a", "b")), compose(params, Split("a", "b"))
    with pytest.raises(ValueError, match="this tree routes nothing; compose"):
        route(params, [0])
    with pytest.raises(ValueError, match="this tree routes inner, rows; say which, at='inner'"):
        route(compose(params, BatchSplit("a", BatchSplit("a", "b", at="inner"))), [0])
    with pytest.raises(ValueError, match=r"this tree routes rows, not 'row' \(did you mean 'rows'\?\)"):
        route(rows, [0], at="row")
    with pytest.raises(ValueError, match=r"rows has 2 children, 0 to 1, and -1 for none of them; found \[-3, 2\]"):
        route(rows, [2, 0, -3])
    with pytest.raises(ValueError, match=r"Split takes a number for each position, \[B, T\]; found \[4\]"):
        route(places, [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"route gave numbers of shape \[2\] for 'rows', and the value here is \[4, 5, 16\]"):
        site(route(rows, [0, 1]))(x)
    with pytest.raises(ValueError, match="BatchSplit does not know which rows are whose; route"):
        site(rows)(x)
    with pytest.raises(ValueError, match=r"Split is of 6 positions, \[2, 4\], and the batch has 5"):
        site(compose(params, Split("a", "b", sizes=[2, 4])))(x)
    with pytest.raises(ValueError, match="Parallel has 2 children, and the batch 3 rows; in_parallel"):
        site(compose(params, Parallel("a", "b")))(x[:3])
    tied = compose(attach(base(TIED), [lora(rank=1, targets="embed_tokens", name=name) for name in "ab"], KEY), Split("a", "b"))
    with pytest.raises(TypeError, match="a head tied to an embedding sees some positions only"):
        run(route(tied, np.zeros((3, 5), int)), tokens(), Decoder(TIED))
