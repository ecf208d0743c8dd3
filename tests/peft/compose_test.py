"""A composition computes what its words say (rows: `route_test`), the paths of a tree stay what they are, and it comes apart again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BIASED, TIED, TINY, base, equal_trees, logits, moved, tokens

from peftjax.interop.exchange.adapter import digest, extract
from peftjax.nn.kernels import dense, dot
from peftjax.nn.tree import flatten, get, put
from peftjax.peft.anneal import anneal
from peftjax.peft.attach import adapters, attach, detach
from peftjax.peft.bottleneck import bottleneck, houlsby, pfeiffer
from peftjax.peft.compose import compose, decompose
from peftjax.peft.composed import Composed, ComposedEntry
from peftjax.peft.composition import Average, BatchSplit, Fuse, Parallel, Split, Stack
from peftjax.peft.drop import drop_layers
from peftjax.peft.ia3 import ia3
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.oft import oft
from peftjax.peft.partition import combine, partition
from peftjax.peft.parts import bitfit, full, norm_only
from peftjax.peft.prefix import prefix
from peftjax.peft.roles import roles
from peftjax.peft.table import table
from peftjax.train.sharding import make_mesh, shardings

KEY = jax.random.key(0)
LINEAR = {"a": lora(rank=2, alpha=3, targets=["q_proj", "k_proj"], name="a"), "b": oft(block_size=2, targets="k_proj", name="b"),
          "c": ia3(name="c")}  # fmt: skip


def tree(*methods):
    return moved(attach(base(), methods, KEY), 0.3)


def kernel(composition, *methods, at="blocks/attn/k/kernel", config=TINY):
    """One layer of a composed kernel, and the parts of it that are around nothing."""
    params = compose(moved(attach(base(config), methods, KEY), 0.3), composition)
    return jax.tree.map(lambda leaf: leaf[0], get(params, at))


def alone(composed, name):
    """One adapter of a composed kernel on the weight alone."""
    return dot(X, dataclasses.replace(composed.parts[name], base=composed.base))


X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, TINY.width)), jnp.float32)


def test_the_average_of_copies_is_the_copy():
    params = moved(attach(base(), [lora(rank=2, targets="q_proj", name="a"), houlsby(size=3, init="bert", name="a")], KEY), 0.3)
    one, entry = get(params, "blocks/attn/q/kernel"), get(params, "blocks/mlp_out/a")
    copies = one
    for name in "bc":
        copies = dataclasses.replace(one, name=name, base=copies)
        params = put(params, f"blocks/mlp_out/{name}", dataclasses.replace(entry, name=name))
    composed = compose(put(params, "blocks/attn/q/kernel", copies), Average("a", "b", "c", weights=[1, 2, 5]))
    own, mean = (jax.tree.map(lambda leaf: leaf[0], value) for value in (one, get(composed, "blocks/attn/q/kernel")))
    np.testing.assert_allclose(dot(X, mean), dot(X, own), rtol=1e-5, atol=1e-5)
    own, mean = (jax.tree.map(lambda leaf: leaf[0], value) for value in (entry, get(composed, "blocks/mlp_out")))
    np.testing.assert_allclose(mean(X), own(X), rtol=1e-5, atol=1e-5)


def test_an_average_is_of_outcomes_by_weights_over_their_sum():
    composed = kernel(Average({"a": 6.0, "c": 2.0}), LINEAR["a"], LINEAR["c"])
    want = 0.75 * alone(composed, "a") + 0.25 * alone(composed, "c")
    np.testing.assert_allclose(dot(X, composed), want, rtol=1e-4, atol=1e-5)
    queries = kernel(Average({"a": 6.0, "c": 2.0}), LINEAR["a"], LINEAR["c"], at="blocks/attn/q/kernel")  # where IA3 is not
    np.testing.assert_allclose(dot(X, queries), 0.75 * alone(queries, "a") + 0.25 * dot(X, queries.base), rtol=1e-4, atol=1e-5)


def test_the_base_product_is_computed_once():
    composed = kernel(Average("a", Stack("e", "f"), "g"), *(lora(rank=2, name=name) for name in "aefg"), at="blocks/mlp/up/kernel")
    text = str(jax.make_jaxpr(lambda x: dot(x, composed))(X))
    assert text.count(f":f32[3,4,{TINY.ff}] = dot_general") == 1 + 4  # W, and B of each
    assert str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(dot(x, composed) ** 2)))(X)).count(f"f32[{TINY.width},{TINY.ff}]") < 5


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a")])
def test_a_stack_nests_in_its_order(order):
    composed = kernel(Stack(*order), LINEAR["a"], LINEAR["b"], LINEAR["c"])
    assert [composed.name, composed.base.name, composed.base.base.name] == list(order[::-1])
    other = kernel(Stack(*order[::-1]), LINEAR["a"], LINEAR["b"], LINEAR["c"])
    assert np.abs(dot(X, composed) - dot(X, other)).max() > 1e-2


def test_a_stack_of_entries_acts_in_its_order():
    sites = {"sites": ("mlp_out",), "reads": "output", "init": "bert"}
    params = moved(attach(base(), [bottleneck(size=3, name="a", **sites), bottleneck(size=2, name="b", **sites)], KEY), 0.5)
    a, b = (jax.tree.map(lambda leaf: leaf[0], get(params, f"blocks/mlp_out/{name}")) for name in "ab")
    assert isinstance(get(compose(params, Stack("a", "b")), "blocks/mlp_out"), dict)
    entry = jax.tree.map(lambda leaf: leaf[0], get(compose(params, Stack("b", "a")), "blocks/mlp_out"))
    np.testing.assert_array_equal(entry(X), a(b(X)))
    assert np.abs(entry(X) - b(a(X))).max() > 1e-3
    mean = jax.tree.map(lambda leaf: leaf[0], get(compose(params, Average(Stack("b", "a"), "b")), "blocks/mlp_out"))
    np.testing.assert_allclose(mean(X), (a(b(X)) + b(X)) / 2, rtol=1e-5, atol=1e-6)


NESTED = Stack("a", Average(Stack("b", "c"), Average({"e": 3, "f": 1}), weights=[1, 3]), "g")
AT = {"targets": ["k_proj", "down_proj"]}
PARTS = (lora(rank=2, lora_bias=True, name="a", **AT), oft(block_size=2, name="b", **AT), ia3(name="c", **AT),
         lora(rank=1, lora_bias=True, name="e", **AT), lora(rank=3, name="f", **AT),
         ia3(targets="k_proj", feedforward=(), name="g"))  # fmt: skip


@pytest.mark.slow  # a merge is not compiled, and maps over layers node by node: six seconds
def test_a_linear_composition_is_a_weight_and_a_bias():
    params = compose(moved(attach(base(BIASED), PARTS, KEY), 0.3), NESTED)
    merged = merge(params)
    for path in ("blocks/attn/k", "blocks/mlp/down"):
        node, bias = (jax.tree.map(lambda leaf: leaf[1], get(params, f"{path}/{field}")) for field in ("kernel", "bias"))
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, node.shape[0])), jnp.float32)
        got = dot(x, node) + jnp.broadcast_to(node.changed_bias(bias), (2, 3, node.shape[1]))
        want = dot(x, get(merged, f"{path}/kernel")[1]) + jnp.broadcast_to(get(merged, f"{path}/bias")[1], got.shape)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, err_msg=path)
        np.testing.assert_allclose(node.merge(), get(merged, f"{path}/kernel")[1], rtol=1e-4, atol=1e-5, err_msg=path)


def test_vectors_are_averaged():
    params = compose(attach(base(), [norm_only(name="a"), lora(rank=2, name="b")], KEY), Average({"a": 1, "b": 3}))
    node = get(params, "blocks/attn_norm/scale")
    moved_node = dataclasses.replace(node, parts=jax.tree.map(lambda leaf: leaf + 4, node.parts))
    np.testing.assert_allclose(moved_node.merge(), dense(node.base) + 1, rtol=1e-5)


@pytest.mark.slow  # three programs: seven seconds
def test_the_whole_model_scanned_and_unrolled_and_taken_apart_again():
    methods = (lora(rank=2, name="tone"), houlsby(size=3, name="en"), houlsby(size=2, name="de"), pfeiffer(size=2, name="task"),
               lora(rank=2, targets="embed_tokens", name="de"))  # fmt: skip
    params = moved(attach(base(TIED), methods, KEY), 0.3)
    composed = compose(params, Stack("tone", Average({"en": 1, "de": 3}), "task"))
    got = logits(composed, TIED)
    np.testing.assert_allclose(logits(composed, TIED, unroll=True), got, rtol=1e-4, atol=1e-5)
    assert np.abs(got - logits(params, TIED)).max() > 1e-2
    equal_trees(decompose(composed), params)
    equal_trees(detach(composed), base(TIED))
    equal_trees(decompose(detach(composed, ["tone", "task"])), detach(params, ["tone", "task"]))
    assert adapters(composed) == adapters(params) == ["de", "en", "task", "tone"]
    assert set(flatten(params)) < set(flatten(composed))
    assert isinstance(get(composed, "blocks/mlp_out"), ComposedEntry) and isinstance(get(composed, "embed/embedding"), Composed)


def test_tools_see_the_adapters_inside():
    methods = (lora(rank=2, name="a"), houlsby(size=3, name="a"), lora(rank=3, name="b"), houlsby(size=2, name="b"))
    params = tree(*methods)
    composed = compose(params, Average("a", "b"))
    for names in (None, ["a"]):
        trainable, frozen = partition(composed, names)
        assert set(flatten(trainable)) == set(flatten(partition(params, names)[0]))
        equal_trees(combine(trainable, frozen), composed)
    plain, inside = flatten(roles(params)), flatten(roles(composed))
    assert {path: inside[path] for path in plain} == plain
    lines = table(composed, partition(composed)[0])
    assert "blocks/attn/q/kernel/a/b          2x2x24" in lines and "LoRA" in lines and "Bottleneck" in lines
    where = flatten(shardings(composed, make_mesh()))
    assert where["blocks/mlp/up/kernel/a/b"].spec == flatten(shardings(params, make_mesh()))["blocks/mlp/up/kernel/a/b"].spec
    for name in "ab":
        assert digest(extract(composed, methods, name)) == digest(extract(params, methods, name))
    off = drop_layers(composed, range(2))
    assert not np.any(flatten(off)["blocks/mlp_out/a/scale"]) and not np.any(flatten(off)["blocks/attn/q/kernel/b/scale"])


def test_bottlenecks_inside_are_annealed():
    params = compose(attach(base(), [houlsby(size=2, anneal=True, name=name) for name in "ab"], KEY), Average("a", "b"))
    entry = get(anneal(params, 0.5, ["a"]), "blocks/mlp_out")
    assert np.all(entry.parts["a"].annealed == 0.5) and not np.any(entry.parts["b"].annealed)


def test_one_node_of_two_names_and_a_name_in_two_places_hold_one_copy():
    params = tree(lora(rank=2, name="a"), lora(rank=1, name="b"), lora(rank=3, name="c"))
    composed = compose(params, Average(Stack("a", "b"), Stack("a", "c")))
    assert len(flatten(composed)) == len(flatten(params)) + 7  # the weights of an Average on seven kernels
    node = jax.tree.map(lambda leaf: leaf[0], get(composed, "blocks/attn/q/kernel"))
    y = dot(X, node.base)
    change = {name: alone(node, name) - y for name in "abc"}
    np.testing.assert_allclose(dot(X, node), y + change["a"] + (change["b"] + change["c"]) / 2, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_is_refused():
    params = tree(lora(rank=2, name="a"), lora(rank=1, name="b", dora=True), norm_only(name="n"))
    with pytest.raises(ValueError, match=r"no adapter is called 'aa' \(did you mean 'a'\?\); the tree holds a, b, n"):
        compose(params, Stack("aa", "b"))
    with pytest.raises(ValueError, match="leaves out n; name them, or take them off"):
        compose(params, Average("a", "b"))
    with pytest.raises(ValueError, match="DoRA 'b' at blocks/attn/k/kernel stands on the weight itself: name it first"):
        compose(params, Stack("n", "a", "b"))
    with pytest.raises(ValueError, match="BatchSplit at blocks/attn_norm/scale: a vector is the same for all rows"):
        compose(params, BatchSplit("n", Stack("b", "a")))
    with pytest.raises(ValueError, match=r"Fuse at blocks/attn/k/kernel needs 'n' there.*attach fusion\(of=\('a', 'b'\), name='n'\)"):
        compose(params, Fuse("a", "b", by="n"))
    with pytest.raises(ValueError, match=r"the weights of an Average, \[1.0, -1.0, 0.0\], do not add up"):
        compose(params, Average("a", "b", "n", weights=[1, -1, 0]))
    composed = compose(params, Stack("n", Average("a", "b")))
    with pytest.raises(ValueError, match="b cannot leave this Average, in which a would stay"):
        detach(composed, ["b"])
    with pytest.raises(ValueError, match="adapters are composed at blocks/attn/k/kernel: decompose"):
        attach(composed, [lora(name="c")], KEY)
    with pytest.raises(TypeError, match="blocks/attn/k/kernel: BatchSplit of b, a is no one weight: it depends on the row"):
        merge(compose(detach(params, ["n"]), BatchSplit("a", "b")))
    heads = attach(base(), [lora(rank=2, targets="lm_head", name="a"), lora(rank=2, name="b")], KEY)
    with pytest.raises(ValueError, match="Split at head/kernel: a head sees some positions only"):
        compose(heads, Split("a", "b"))
    apart = attach(base(TIED), [lora(rank=2, targets="embed_tokens", name="a"), lora(rank=2, targets="lm_head", name="b")], KEY)
    with pytest.raises(ValueError, match="a would have the head follow the embedding, which others of this composition keep apart"):
        compose(apart, BatchSplit("a", "b"))
    assert adapters(compose(apart, Stack("b", "a"))) == ["a", "b"]
    before = attach(base(), [prefix(length=2, name="a"), lora(rank=2, name="b")], KEY)
    with pytest.raises(ValueError, match="Average at blocks/attn/kv: what stands before a sequence is there for a row or is not"):
        compose(before, Average("a", "b"))
    biased = compose(attach(base(BIASED), [ia3(name="a"), lora(rank=2, name="b")], KEY), Parallel("a", "b"))
    with pytest.raises(TypeError, match="Parallel knows its rows by the batch, which a bias does not see"):
        logits(biased, BIASED, tokens(4))
    whole = attach(base(), [full(name="a"), bitfit(add=True, name="a"), lora(rank=2, name="b")], KEY)
    with pytest.raises(ValueError, match="Trained 'a' at blocks/attn/k/kernel stands on the weight itself"):
        compose(whole, Stack("b", "a"))
