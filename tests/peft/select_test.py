"""Targets are regular expressions over logical paths or the field's names, and each must match something."""

import jax.numpy as jnp
import pytest
from tiny import BIASED, SMOL, TIED, TINY, base

from peftjax.models.decoder import abstract_params
from peftjax.nn.kernels import Tied
from peftjax.nn.tree import get
from peftjax.peft.lora import LoRA
from peftjax.peft.select import (
    NAMES,
    cuts,
    module_of,
    on_layers,
    parameters,
    require_used,
    resolve,
    select,
    sibling,
    with_head,
)

LINEAR = [f"blocks/attn/{name}" for name in "koqv"] + [f"blocks/mlp/{name}" for name in ("down", "gate", "up")]


def modules(params, targets, **options):
    return [module_of(target.logical) for target in select(params, targets, **options)]


def test_all_linear_is_the_kernels_of_the_blocks_and_neither_norms_nor_head_nor_embedding():
    assert modules(base(), "all-linear") == LINEAR
    assert modules(base(BIASED), "all-linear") == LINEAR


@pytest.mark.parametrize("name", [name for name in NAMES if name != "all-linear"])
def test_each_of_the_fields_names_is_one_module(name):
    assert len(modules(base(), name)) == 1


@pytest.mark.parametrize(
    ("targets", "want"),
    [
        (".*/(q|v)", ["blocks/attn/q", "blocks/attn/v"]),
        (["q_proj", "v_proj"], ["blocks/attn/q", "blocks/attn/v"]),
        (["q_proj", ".*/q"], ["blocks/attn/q"]),
        ("blocks/mlp/.*", LINEAR[-3:]),
        ("embed|head", ["embed", "head"]),
    ],
)
def test_targets_are_matched_whole(targets, want):
    assert modules(base(), targets) == want


def test_a_cut_stack_is_matched_by_its_logical_path():
    found = select(base(TINY, (1, 1)), "q_proj")
    assert [(t.path, t.logical, t.layers) for t in found] == [
        ("blocks_0_1/attn/q/kernel", "blocks/attn/q/kernel", range(0, 1)),
        ("blocks_1_2/attn/q/kernel", "blocks/attn/q/kernel", range(1, 2)),
    ]
    assert [t.path for t in select(base(TINY, (1, 1)), "q_proj", layers=[1])] == ["blocks_1_2/attn/q/kernel"]


def test_abstract_trees_are_matched_too():
    assert modules(abstract_params(SMOL), "all-linear") == LINEAR


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("q_prj", "target 'q_prj' matches no kernel; did you mean 'q_proj'"),
        (["q_proj", "blocks/attn/qq"], "target 'blocks/attn/qq' matches no kernel; did you mean 'blocks/attn/q'"),
        ("zzz", r"matches no kernel\. Kernels are blocks/attn/k, .*names are q_proj"),
        ("attn/q", "matches no kernel"),
        ("*q", "target '\\*q' is no regular expression: nothing to repeat"),
    ],
)
def test_a_target_that_matches_nothing_names_the_nearest(targets, message):
    with pytest.raises(ValueError, match=message):
        select(base(), targets)


def test_a_tied_head_is_no_kernel():
    with pytest.raises(ValueError, match="target 'lm_head' matches nothing: the head is tied to the embedding"):
        select(base(TIED), "lm_head")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([1], r"layers \[1\] are part of the scanned stack blocks \(layers 0 to 1\).*segments=\(1, 1\)"),
        ([2], r"layers \[2\]: \[2\] not among layers 0 to 1"),
        ([-1, 0], r"\[-1\] not among layers 0 to 1"),
        ([], "none given not among layers 0 to 1"),
    ],
)
def test_layers_must_exist_and_must_not_cut_a_scanned_stack(layers, message):
    with pytest.raises(ValueError, match=message):
        select(base(), "q_proj", layers=layers)


def test_a_target_off_the_layers_is_not_dropped_in_silence():
    with pytest.raises(ValueError, match="target 'lm_head' names head, which lies on no layer"):
        select(base(TINY, (1, 1)), ["q_proj", "lm_head"], layers=[1])
    assert modules(base(TINY, (1, 1)), ".*", layers=[1]) == LINEAR


def test_the_cut_that_is_advised_is_the_one_that_works():
    assert cuts(set(range(6)), {2, 3}) == (2, 2, 2)
    assert cuts(set(range(6)), {0, 5}) == (1, 4, 1)
    assert cuts({0, 1, 2}, {0, 1, 2}) == (3,)


def test_without_layers_everything_is_kept():
    everything = parameters(base(), ("kernel", "embedding"))
    assert on_layers(everything, None) == everything
    assert all(t.layers is not None for t in on_layers(everything, [0, 1]))


def test_the_first_pattern_that_names_the_module_or_its_layer_counts():
    patterns = {"blocks/7/attn/q": 4, "down_proj": 32, ".*/attn/.*": 2}
    assert resolve(patterns, "blocks/attn/q", 7, 8) == 4
    assert resolve(patterns, "blocks/attn/q", 6, 8) == 2
    assert resolve(patterns, "blocks/mlp/down", 7, 8) == 32
    assert resolve(patterns, "blocks/mlp/up", 7, 8) == 8
    assert resolve({"embed_tokens": 3}, "embed", None, 8) == 3
    assert resolve({}, "embed", None, 8) == 8


def test_every_pattern_must_name_a_target():
    targets = select(base(), ["q_proj", "v_proj"])
    require_used({"q_proj": 1, "blocks/1/attn/v": 2}, targets, "rank_pattern")
    for pattern in ("k_proj", "blocks/2/attn/q"):
        with pytest.raises(
            ValueError, match=f"rank_pattern '{pattern}' matches none of the targets blocks/attn/q, blocks/attn/v"
        ):
            require_used({pattern: 1}, targets, "rank_pattern")


def test_siblings_stand_beside():
    assert sibling(base(BIASED), "blocks/attn/q/kernel", "bias") is base(BIASED)["blocks"]["attn"]["q"]["bias"]
    assert sibling(base(), "blocks/attn/q/kernel", "bias") is None


def test_a_head_of_its_own_reads_the_embedding_under_all_adapters():
    assert with_head(base()) is base()
    table = base(TIED)["embed"]["embedding"]
    node = LoRA(table, jnp.ones((2, 40)), jnp.ones((2, 16)), jnp.float32(1), None, "tone")
    for embedding in (table, node):
        head = get(with_head({"embed": {"embedding": embedding}}), "head/kernel")
        assert isinstance(head, Tied) and head.base is table
