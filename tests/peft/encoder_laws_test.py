"""The laws of the methods on an encoder: the start is the base, nothing is unread, the base stays, what is gone leaves no trace."""

import jax
import numpy as np
import pytest
from tiny import adamw, equal_trees, moved
from tiny_encoder import LENGTH, TINY, hidden, params, tokens

from peftjax.data.packing import Batch
from peftjax.models.decoder import cut
from peftjax.models.encoder import Encoder
from peftjax.nn.tree import flatten, get
from peftjax.peft import (
    attach,
    bitfit,
    bottleneck,
    classifier,
    cut_points,
    detach,
    full,
    head_only,
    houlsby,
    lora,
    merge,
    norm_only,
    p_tuning,
    parallel,
    partition,
    pfeiffer,
    prefix,
    prompt_tuning,
    scaled_parallel,
)
from peftjax.peft.checks import unread
from peftjax.peft.partition import combine
from peftjax.train.loss import token_losses
from peftjax.train.step import make_step, new_state

KEY = jax.random.key(0)
HEAD = classifier(labels=4)
METHODS = {
    "lora": (lora(rank=2, targets=("query", "value")), HEAD),
    "lora everywhere": (lora(rank=2, targets=("all-linear", "embed_tokens")), HEAD),
    "houlsby": (houlsby(size=3), HEAD),
    "pfeiffer": (pfeiffer(size=3), HEAD),
    "parallel": (parallel(size=3), HEAD),
    "scaled parallel": (scaled_parallel(size=3), HEAD),
    "bottleneck everywhere": (
        bottleneck(size=2, sites=("embed_out", "attn_in", "attn_out", "mlp_in", "block_out"), reads="output", norm="both"), HEAD
    ),
    "bitfit": (bitfit(), HEAD),
    "norms": (norm_only(), HEAD),
    "full": (full(), HEAD),
    "own head": (head_only(),),
    "upper layer": (pfeiffer(size=3, layers=[2]), HEAD),
}
# Before the text: their start is not the base.
BEFORE = {
    "prompt": (prompt_tuning(length=2), HEAD),
    "prompt behind the norm": (prompt_tuning(length=2, offset=False, reads="prompt"), HEAD),
    "P-tuning": (p_tuning(length=2, hidden=3, reads="prompt"), HEAD),
    "prefix": (prefix(length=2, hidden=3), HEAD),
}


def attached(name):
    methods = (METHODS | BEFORE)[name]
    segments = cut_points(methods, TINY.layers)
    return attach(cut(params(), TINY, segments), methods, KEY), segments


def batch():
    rows = np.asarray(tokens())
    ones, first = np.ones_like(rows), np.zeros((3, 1), np.int32)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1))
    return Batch(rows, ones, positions, first, np.array([[0], [3], [1]], np.int32), np.ones((3, 1), np.float32), types=ones)


@pytest.mark.parametrize("name", METHODS)
def test_the_start_is_the_base_and_what_is_detached_leaves_no_trace(name):
    tree, segments = attached(name)
    options = (("segments", segments),)
    np.testing.assert_array_equal(
        hidden(tree, tokens(), options=options), hidden(cut(params(), TINY, segments), tokens(), options=options)
    )
    equal_trees(detach(tree), cut(params(), TINY, segments))


@pytest.mark.parametrize("name", BEFORE)
def test_what_stands_before_a_text_is_seen_and_leaves_no_trace(name):
    tree, segments = attached(name)
    assert segments == () and np.abs(hidden(tree, tokens()) - hidden(params(), tokens())).max() > 1e-2
    equal_trees(detach(tree), params())


@pytest.mark.slow  # a step for each method: half a minute
@pytest.mark.parametrize("name", {**METHODS, **BEFORE})
def test_a_step_moves_all_that_is_trained_and_nothing_else(name):
    tree, segments = attached(name)
    model, (trainable, frozen) = Encoder(TINY, segments=segments), partition(moved(tree))
    assert unread(lambda t, f, b: token_losses(model, combine(t, f), b)[0], trainable, frozen, batch()) == []
    before, kept = flatten(jax.tree.map(np.asarray, trainable)), jax.tree.map(np.asarray, frozen)
    optimiser = adamw()
    state, metrics = jax.jit(make_step(model, optimiser))(new_state(trainable, optimiser, KEY), frozen, batch())
    assert metrics["tokens"] == 3 and metrics["loss"] > 0
    for path, leaf in flatten(state.trainable).items():
        assert not np.array_equal(leaf, before[path]), path
    equal_trees(frozen, kept)


@pytest.mark.parametrize("name", ["lora", "lora everywhere", "bitfit", "norms", "full", "own head"])
def test_merged_weights_compute_what_the_adapter_did(name):
    tree = moved(attached(name)[0])
    np.testing.assert_allclose(hidden(merge(tree), tokens()), hidden(tree, tokens()), rtol=1e-4, atol=1e-4)


def test_a_post_norm_block_has_no_final_norm_to_hang_something_behind():
    with pytest.raises(ValueError, match="this base has no site final_out"):
        attach(params(), [bottleneck(size=2, sites=("final_out",), reads="output")], KEY)


def test_berts_names_are_targets():
    tree = attach(params(), [lora(rank=2, targets=("query", "key", "value"))], KEY)
    assert [name for name in "qkvo" if hasattr(get(tree, f"blocks/attn/{name}/kernel"), "a")] == list("qkv")
