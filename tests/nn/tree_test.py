"""Paths are what a person would write, and trees can be taken apart and put together by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftjax.nn.tree import flatten, get, path_of, place, put, stack_name, unflatten_like, walk
from peftjax.peft.lora import LoRA

NAMES = st.text("abc", min_size=1, max_size=3)
TREES = st.recursive(st.integers(), lambda child: st.dictionaries(NAMES, child, min_size=1, max_size=3), max_leaves=8)
DICTS = st.dictionaries(NAMES, TREES, min_size=1, max_size=3)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


def lora_node(base, name):
    return LoRA(base, jnp.ones((2, 4)), jnp.ones((2, 6)), jnp.float32(1), None, name)


@given(DICTS)
def test_unflatten_restores_what_flatten_took_apart(tree):
    flat = flatten(tree)
    assert list(flat) == sorted(flat)
    assert unflatten_like(tree, flat) == tree


@given(DICTS)
def test_walk_names_the_leaves_of_nested_dicts(tree):
    assert dict(walk(tree)) == flatten(tree)


@given(DICTS, PATHS, st.integers())
def test_get_finds_what_put_put_and_nothing_else_changes(tree, path, value):
    below = any(f"{path}/".startswith(f"{other}/") and path != other for other in flatten(tree))
    if below:  # a leaf stands in the way of the path
        return
    before = flatten(tree)
    new = put(tree, path, value)
    assert get(new, path) == value
    assert flatten(tree) == before
    apart = {p: v for p, v in before.items() if p != path and not p.startswith(f"{path}/")}
    assert {p: v for p, v in flatten(new).items() if p != path} == apart


@given(DICTS, PATHS)
def test_putting_nothing_back_restores_the_tree(tree, path):
    if any(path.startswith(f"{other}/") for other in flatten(tree)) or get(tree, path) is not None:
        return
    assert put(put(tree, path, 1), path, None) == tree


def test_get_has_a_default():
    assert get({"a": {"b": 1}}, "a/c") is None
    assert get({"a": {"b": 1}}, "a/b/c", default=5) == 5


@pytest.mark.parametrize(("start", "stop"), [(0, 30), (0, 20), (20, 30), (7, 8)])
def test_place_reads_what_stack_name_wrote(start, stop):
    path = f"{stack_name(start, stop, 30)}/attn/q/kernel"
    assert place(path, stop - start) == ("blocks/attn/q/kernel", range(start, stop))


@pytest.mark.parametrize("path", ["embed/embedding", "final_norm/scale", "blocksmith/kernel", "head/blocks/kernel"])
def test_parameters_outside_the_stack_have_no_layers(path):
    assert place(path, 3) == (path, None)


def test_a_node_adds_to_the_path_and_never_changes_the_frozen_one():
    base = jnp.ones((4, 6))
    tree = {"q": {"kernel": lora_node(lora_node(base, "tone"), "task")}}
    assert list(flatten(tree)) == [
        "q/kernel", "q/kernel/task/a", "q/kernel/task/b", "q/kernel/task/scale",
        "q/kernel/tone/a", "q/kernel/tone/b", "q/kernel/tone/scale",
    ]  # fmt: skip
    assert flatten(tree)["q/kernel"] is base


def test_two_adapters_of_one_name_on_one_kernel_are_refused():
    tree = {"q": {"kernel": lora_node(lora_node(jnp.ones((4, 6)), "tone"), "tone")}}
    with pytest.raises(ValueError, match="two leaves have one path: q/kernel/tone/a, .*different names"):
        flatten(tree)


def test_unflatten_names_missing_and_extra_paths():
    with pytest.raises(ValueError, match=r"missing \['a/b'\], extra \['a/c'\]"):
        unflatten_like({"a": {"b": 1}}, {"a/c": 1})


def test_unflatten_like_keeps_nodes():
    tree = {"kernel": lora_node(jnp.ones((4, 6)), "tone")}
    doubled = unflatten_like(tree, {path: 2 * leaf for path, leaf in flatten(tree).items()})
    assert isinstance(doubled["kernel"], LoRA) and doubled["kernel"].name == "tone"
    np.testing.assert_array_equal(doubled["kernel"].base, 2 * np.ones((4, 6)))


def test_sequences_are_numbered_and_unnamed_keys_refused():
    assert list(flatten({"a": [1, (2, 3)]})) == ["a/0", "a/1/0", "a/1/1"]
    with pytest.raises(TypeError, match="no name in tree key"):
        path_of([object()])


def test_walk_gives_nodes_whole():
    node = lora_node(jnp.ones((4, 6)), "tone")
    assert list(walk({"b": {"kernel": node}, "a": 1})) == [("a", 1), ("b/kernel", node)]
    assert jax.tree.structure(node) == jax.tree.structure(lora_node(jnp.ones((4, 6)), "tone"))
