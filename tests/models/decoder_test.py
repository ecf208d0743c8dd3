"""The decoder computes one function however it is run: scanned, unrolled, cut, recomputed, packed, padded or cached."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BIASED, LENGTH, TIED, TINY, base, equal_trees, logits, noise, run, shapes, tokens

from peftjax.models import rope
from peftjax.models.attention import empty_cache
from peftjax.models.decoder import Decoder, abstract_params, count_within, cut, init_params, unrolled
from peftjax.nn.tree import flatten, get, put

FOUR = dataclasses.replace(TINY, layers=4)


@pytest.mark.parametrize("options", [{"unroll": True}, {"remat": "dots"}, {"remat": "block"}])
def test_layouts_of_one_stack_agree(options):
    np.testing.assert_allclose(logits(base(), **options), logits(base()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("segments", [(1, 3), (2, 1, 1)])
def test_a_cut_stack_computes_the_same(segments):
    parts = cut(base(FOUR), FOUR, segments)
    np.testing.assert_allclose(logits(parts, FOUR, segments=segments), logits(base(FOUR), FOUR), rtol=1e-5, atol=1e-5)


def test_an_unrolled_model_is_the_same_and_reads_no_layer_out_of_a_stack():
    model, params = unrolled(Decoder(TINY), base())
    np.testing.assert_allclose(model.apply({"params": params}, tokens()), logits(base()), atol=2e-6)

    def slices_of_kernels(model, params):
        def step(params, cache):
            return model.apply({"params": params}, tokens()[:1, :1], cache=cache, method="hidden")

        text = jax.jit(step).lower(params, empty_cache(TINY, 1, 8)).compile().as_text()
        return re.findall(rf"dynamic_slice_sizes={{1,\d+,{TINY.ff}}}", text)

    assert slices_of_kernels(Decoder(TINY), base()) and not slices_of_kernels(model, params)


def test_a_cut_is_undone_by_joining_and_may_be_moved():
    whole = base(FOUR)
    parts = cut(whole, FOUR, (1, 3))
    assert {"blocks_0_1", "blocks_1_4"} < set(parts) and "blocks" not in parts
    equal_trees(cut(parts, FOUR, ()), whole)
    equal_trees(cut(cut(parts, FOUR, (2, 1, 1)), FOUR, ()), whole)
    equal_trees(cut(parts, FOUR, (2, 2)), cut(whole, FOUR, (2, 2)))
    assert cut(whole, FOUR, ()) is whole
    assert shapes(parts) == shapes(abstract_params(FOUR, segments=(1, 3)))


def test_gradients_agree_between_layouts():
    def loss(params, **options):
        return jnp.sum(jnp.square(Decoder(TINY, **options).apply({"params": params}, tokens())))

    want = flatten(jax.jit(jax.grad(loss))(base()))
    for options in ({"unroll": True}, {"remat": "dots"}, {"remat": "block"}):
        got = flatten(jax.jit(lambda params, o=options: jax.grad(lambda p: loss(p, **o))(params))(base()))
        for path in want:
            np.testing.assert_allclose(got[path], want[path], rtol=2e-3, atol=2e-4, err_msg=f"{options} {path}")


def test_an_unknown_remat_is_refused():
    with pytest.raises(ValueError, match="remat is 'blocks'; it may be none, dots, block"):
        logits(base(), remat="blocks")


@pytest.mark.parametrize("window, full_layers", [(None, ()), (2, ()), (2, (0,))])
def test_causality_by_gradients(window, full_layers):
    """d logits[t] / d embedding[s] is zero for s > t, and for s out of the layers' reach, and only there."""
    config = dataclasses.replace(TINY, window=window, full_layers=full_layers, vocab_size=LENGTH)
    params, model = base(config), Decoder(config)
    ids = jnp.arange(LENGTH)[None]  # one row of the embedding a position

    def at(embedding, t):
        return jnp.sum(model.apply({"params": put(params, "embed/embedding", embedding)}, ids)[0, t] ** 2)

    grads = jax.jit(jax.vmap(jax.grad(at), in_axes=(None, 0)))(params["embed"]["embedding"], jnp.arange(LENGTH))
    reached = np.abs(grads).max(axis=-1) > 0
    reach = LENGTH if window is None or full_layers else config.layers * (window - 1)
    want = [[s <= t and t - s <= reach for s in range(LENGTH)] for t in range(LENGTH)]
    np.testing.assert_array_equal(reached, want)


def test_layers_with_and_without_the_window():
    """With the window everywhere or nowhere it is the plain model; in between it is neither; and the kinds follow a cut."""
    windowed = dataclasses.replace(FOUR, window=2)
    nowhere, some = (dataclasses.replace(windowed, full_layers=layers) for layers in ((0, 1, 2, 3), (1, 2)))
    params = base(FOUR)
    np.testing.assert_array_equal(logits(params, nowhere), logits(params, FOUR))
    for plain in (FOUR, windowed):
        assert np.abs(logits(params, some) - logits(params, plain)).max() > 1e-3
    np.testing.assert_allclose(
        logits(params, dataclasses.replace(some, window=LENGTH)), logits(params, FOUR), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        logits(cut(params, some, (1, 3)), some, segments=(1, 3)), logits(params, some), rtol=1e-5, atol=1e-5
    )


def test_local_layers_turn_by_a_base_of_their_own():
    config = dataclasses.replace(TINY, window=LENGTH, full_layers=(1,))
    same, other = (dataclasses.replace(config, local_rope_base=value) for value in (config.rope_base, 10.0))
    np.testing.assert_allclose(logits(base(), same), logits(base()), rtol=1e-5, atol=1e-5)
    assert np.abs(logits(base(), other) - logits(base())).max() > 1e-3
    scaled = dataclasses.replace(same, rope_scaling=rope.Linear(2.0), full_layers=())  # local layers are not rescaled
    np.testing.assert_allclose(logits(base(), scaled), logits(base()), rtol=1e-5, atol=1e-5)


def test_soft_caps_bound_and_large_ones_do_nothing():
    small, large = (dataclasses.replace(TINY, logit_softcap=cap, attention_softcap=cap) for cap in (0.5, 1e4))
    assert np.abs(logits(base(), small)).max() < 0.5
    np.testing.assert_allclose(logits(base(), large), logits(base()), rtol=1e-3, atol=1e-4)


def test_the_query_scalar_of_the_head_size_and_the_embedding_scale():
    np.testing.assert_allclose(logits(base(), dataclasses.replace(TINY, query_scalar=6.0)), logits(base()), rtol=1e-5, atol=1e-5)
    twice = put(base(), "embed/embedding", 2 * base()["embed"]["embedding"])
    np.testing.assert_array_equal(logits(base(), dataclasses.replace(TINY, embedding_scale=2.0)), logits(twice))


def test_learned_positions_are_rows_and_padding_may_lie_beyond_them():
    config = dataclasses.replace(TINY, learned_positions=True, max_length=3)
    params, ids = base(config), tokens(2, 3, seed=4)
    alone = run(params, ids, Decoder(config))
    pad = ((0, 0), (5, 0))
    padded = run(params, jnp.pad(ids, pad), Decoder(config), segments=jnp.pad(jnp.ones_like(ids), pad))
    np.testing.assert_allclose(padded[:, 5:], alone, rtol=1e-5, atol=1e-5)
    table = params["pos_embed"]["embedding"]
    swapped = run(put(params, "pos_embed/embedding", table[::-1]), ids, Decoder(config), positions=jnp.array([[2, 1, 0]] * 2))
    np.testing.assert_allclose(swapped, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, dataclasses.replace(TINY, window=2, full_layers=(1,), local_rope_base=10.0)])
def test_packed_rows_are_the_rows_alone(config):
    first, second = tokens(1, 2, seed=1), tokens(1, 3, seed=2)
    segments = jnp.array([[1, 1, 2, 2, 2]])
    packed = run(base(), jnp.concatenate([first, second], axis=1), Decoder(config), segments=segments)
    np.testing.assert_allclose(packed[:, :2], run(base(), first, Decoder(config)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(packed[:, 2:], run(base(), second, Decoder(config)), rtol=1e-5, atol=1e-5)


def test_left_and_right_padding_change_nothing():
    ids = tokens(2, 3, seed=4)
    alone = run(base(), ids, Decoder(TINY))
    for left in (2, 0):
        pad = ((0, 0), (left, 2 - left))
        padded = run(base(), jnp.pad(ids, pad), Decoder(TINY), segments=jnp.pad(jnp.ones_like(ids), pad))
        assert jnp.isfinite(padded).all()
        np.testing.assert_allclose(padded[:, left : left + 3], alone, rtol=1e-5, atol=1e-5)


def test_positions_are_counted_within_segments():
    got = count_within(jnp.array([[1, 1, 2, 2, 2, 0], [3, 1, 3, 1, 1, 1]]))
    np.testing.assert_array_equal(got, [[0, 1, 0, 1, 2, 0], [0, 0, 1, 1, 2, 3]])


def test_given_positions_are_used():
    ids = tokens()
    counted = jnp.tile(jnp.arange(LENGTH)[None], (ids.shape[0], 1))
    plain = run(base(), ids, Decoder(TINY))
    np.testing.assert_array_equal(run(base(), ids, Decoder(TINY), positions=counted), plain)
    np.testing.assert_allclose(run(base(), ids, Decoder(TINY), positions=counted + 9), plain, rtol=1e-3, atol=1e-4)
    assert np.abs(run(base(), ids, Decoder(TINY), positions=2 * counted) - plain).max() > 1e-3


@pytest.mark.parametrize(("window", "segments"), [(None, ()), (2, ()), (None, (1, 1))])
def test_the_cache_gives_what_a_full_pass_gives(window, segments):
    """Prefill of two tokens, then one, then two: hidden states as in one pass over five, one row left-padded."""
    config = dataclasses.replace(TINY, window=window)
    model, params = Decoder(config, segments=segments), cut(base(config), config, segments)
    ids, parts = tokens(), jnp.ones((3, LENGTH), jnp.int32).at[1, 0].set(0)

    @jax.jit
    def step(params, ids, parts, cache):
        return model.apply({"params": params}, ids, segments=parts, cache=cache, method="hidden")

    whole, _ = model.apply({"params": params}, ids, segments=parts, method="hidden")
    cache, pieces = empty_cache(config, 3, 8), []
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        hidden, cache = step(params, ids[:, start:stop], parts[:, start:stop], cache)
        pieces.append(hidden)
    assert cache.used == LENGTH
    np.testing.assert_array_equal(cache.segments[:, LENGTH:], np.zeros((3, 3)))
    got, whole = (np.where(parts[..., None] > 0, x, 0) for x in (jnp.concatenate(pieces, axis=1), whole))
    np.testing.assert_allclose(got, whole, rtol=1e-4, atol=1e-5)


def test_grouped_queries_are_repeated_key_value_heads():
    config = dataclasses.replace(TINY, kv_heads=TINY.heads)
    params, group = base(), TINY.heads // TINY.kv_heads
    for name in ("k", "v"):
        kernel = params["blocks"]["attn"][name]["kernel"]
        split = kernel.reshape(*kernel.shape[:2], TINY.kv_heads, TINY.head_size)
        params = put(
            params, f"blocks/attn/{name}/kernel", jnp.repeat(split, group, axis=2).reshape(*kernel.shape[:2], -1)
        )
    np.testing.assert_allclose(logits(params, config), logits(base()), rtol=1e-5, atol=1e-5)


def test_a_tied_head_is_the_embedding():
    params = put(base(TIED), "head/kernel", base(TIED)["embed"]["embedding"].T)
    assert "head" not in base(TIED)
    np.testing.assert_allclose(logits(base(TIED), TIED), logits(params, TINY), rtol=1e-5, atol=1e-5)


def test_biases_are_created_where_the_config_wants_them_and_read_where_the_tree_holds_them():
    assert sum(path.endswith("/bias") for path in flatten(base(BIASED))) == 7
    assert not any(path.endswith("/bias") for path in flatten(base()))
    np.testing.assert_array_equal(logits(base(BIASED), TINY), logits(base(BIASED), BIASED))


def test_activations_have_the_models_dtype_and_parameters_theirs():
    out = run(base(), tokens(), Decoder(TINY, dtype=jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), logits(base()), rtol=0.1, atol=0.1)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base())
    assert run(half, tokens(), Decoder(TINY)).dtype == jnp.float32


def test_a_row_does_not_depend_on_the_others():
    np.testing.assert_allclose(logits(base())[1:2], logits(base(), ids=tokens()[1:2]), rtol=1e-5, atol=1e-5)


def test_abstract_parameters_are_those_of_init():
    params = init_params(BIASED, jax.random.key(0))
    assert shapes(params) == shapes(abstract_params(BIASED))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_a_missing_or_misshapen_weight_is_named():
    wrong = put(base(), "blocks/attn/q/kernel", noise("q", jnp.ones((2, 16, 23))))
    with pytest.raises(ValueError, match=r"blocks/attn/q/kernel has shape \(16, 23\); the model asks for \(16, 24\)"):
        logits(wrong)
    missing = put(base(), "blocks/attn/q", None)
    assert get(missing, "blocks/attn/q") is None
    with pytest.raises(Exception, match="kernel"):
        logits(missing)
