"""Keys and values before a sequence: their encoder and gates are the formula, on decoders and encoders, and what cannot be is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMOL, TINY, base, equal_trees, logits, moved, run, tokens
from tiny_encoder import TINY as ENCODER
from tiny_encoder import hidden as encode
from tiny_encoder import params as encoder
from tiny_encoder import tokens as texts

from peftjax.models.decoder import Decoder, abstract_params, cut
from peftjax.nn.shared import fill
from peftjax.nn.sites import Tokens
from peftjax.nn.tree import get, put, walk
from peftjax.peft.across_layers import across_layers
from peftjax.peft.attach import attach, detach
from peftjax.peft.merge import merge
from peftjax.peft.partition import partition, size
from peftjax.peft.prefix import Prefix, prefix, with_keys_values

KEY = jax.random.key(0)
H = jax.random.normal(jax.random.key(1), (2, 4, 16))
TOKENS = Tokens(jnp.tile(jnp.arange(4)[None], (2, 1)), jnp.array([[1, 1, 2, 0], [1, 1, 1, 1]]))
WIDTH = TINY.kv_heads * TINY.head_size


def layer(method, number=1):
    """The entry of one layer, all leaves moved, with what the layers share."""
    params = moved(attach(base(), [method], KEY))
    whole = get(params, "blocks/attn/kv/default")
    return fill(jax.tree.map(lambda x: x[number], whole), params.get("shared", {}))


def test_layers_may_share_a_prefix():
    params = moved(attach(base(), [across_layers(prefix(length=3))], KEY))
    assert size(partition(params)[0])[0] == 2 * 3 * WIDTH
    assert np.abs(logits(params) - logits(base())).max() > 1e-2


def test_the_encoder_is_its_formula():
    one = layer(prefix(length=3, hidden=5))
    h = np.tanh(np.asarray(one.embedding) @ np.asarray(one.down).T + np.asarray(one.down_bias))
    kv = h @ np.asarray(one.up) + np.asarray(one.up_bias)
    k, v, *rest = one.keys_values(H, TOKENS)
    assert k.shape == v.shape == (3, WIDTH) and set(rest) == {None}
    np.testing.assert_allclose(np.concatenate([k, v], axis=1), kv, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("gates", "gating"), [(1, "token"), (2, "token"), (2, "mean")])
def test_gates_are_of_the_token_or_of_its_segment_without_padding(gates, gating):
    one = layer(prefix(length=3, gates=gates, gating=gating))
    want = 1 / (1 + np.exp(-(np.asarray(H) @ np.asarray(one.gate).T + np.asarray(one.gate_bias))))
    if gating == "mean":
        want = np.stack([np.stack([want[0, :2].mean(0)] * 2 + [want[0, 2], want[0, 3]]), np.stack([want[1].mean(0)] * 4)])
    out = one.keys_values(H, TOKENS)
    for gate, column in ((out.key_gate, 0), (out.value_gate, gates - 1)):
        np.testing.assert_allclose(gate, np.repeat(want[:, :, [column]], 3, axis=2), rtol=1e-5, atol=1e-6)


def test_closed_gates_leave_attention_to_keys_of_zero_and_nothing_of_the_values():
    """What is left of a prefix then takes its share of attention, and gives nothing: as zeros do."""
    closed = attach(base(), [prefix(length=3, gates=1)], KEY)
    entry = get(closed, "blocks/attn/kv/default")
    closed = put(closed, "blocks/attn/kv/default", dataclasses.replace(entry, gate_bias=entry.gate_bias - 100))
    zeros = attach(base(), [prefix(length=3, init="zeros")], KEY)
    np.testing.assert_allclose(logits(closed), logits(zeros), rtol=1e-5, atol=1e-5)
    assert np.abs(logits(zeros) - logits(base())).max() > 1e-2


def test_dropout_is_of_each_row_and_at_training_time_alone():
    one = layer(prefix(length=3, dropout=0.5))
    k = one.keys_values(H, TOKENS, KEY).k
    assert k.shape == (2, 3, WIDTH) and np.any(k[0] != k[1])
    kept = np.asarray(k) != 0
    np.testing.assert_allclose(np.asarray(k)[kept], np.broadcast_to(2 * one.k, k.shape)[kept], rtol=1e-6)
    np.testing.assert_array_equal(one.keys_values(H, TOKENS).k, one.k)


def test_an_offset_is_where_positions_start():
    """Keys are not rotated: what changes is the tokens' own angle."""
    near, far = (moved(attach(base(), [prefix(length=3, offset=offset)], KEY)) for offset in (False, True))
    places = jnp.tile(jnp.arange(5)[None], (3, 1))
    assert np.abs(logits(near) - logits(far)).max() > 1e-4
    np.testing.assert_allclose(run(near, tokens(), Decoder(TINY), positions=places + 3), logits(far), rtol=1e-4, atol=1e-5)


def test_a_window_reaches_a_prefix_that_slides_as_far_as_tokens():
    """Three slots and a window of three: the first token sees the last two slots, the third none. Without `slides` all are seen."""
    for slides in (False, True):
        one = layer(prefix(length=3, slides=slides)).keys_values(H, TOKENS)
        assert one.within(TOKENS.positions, None).seen is None
        seen = one.within(TOKENS.positions, 3).seen
        if slides:
            np.testing.assert_array_equal(seen[0], [[False, True, True], [False, False, True], [False] * 3, [False] * 3])
        else:
            assert seen is None


def test_upper_layers_alone():
    parts = attach(cut(base(), TINY, (1, 1)), [prefix(length=3, hidden=4, layers=[1])], KEY)
    assert [path for path, _ in walk(parts) if "/kv/" in path] == ["blocks_1_2/attn/kv/default"]
    equal_trees(detach(parts), cut(base(), TINY, (1, 1)))
    whole = attach(cut(base(), TINY, (1, 1)), [prefix(length=3, hidden=4)], KEY)
    equal_trees(get(parts, "blocks_1_2/attn/kv"), get(whole, "blocks_1_2/attn/kv"))
    assert np.abs(logits(parts, segments=(1, 1)) - logits(base())).max() > 1e-2


@pytest.mark.parametrize(
    ("method", "count"),
    [(prefix(length=10), 115_200), (prefix(length=10, hidden=64), 791_488), (prefix(length=10, gates=1), 115_200 + 30 * 577)],
)
def test_the_number_of_trainables_on_smollm2(method, count):
    params = jax.eval_shape(lambda params: attach(params, [method], KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == count


def test_an_encoder_sees_it_in_every_segment_and_padding_changes_nothing():
    method = prefix(length=2, hidden=4, gates=2, gating="mean", offset=False)
    tree = moved(attach(encoder(), [method], KEY))
    whole = encode(tree, texts())
    assert np.abs(whole - encode(encoder(), texts())).max() > 1e-2
    pad = ((0, 0), (0, 2))
    padded = encode(tree, jnp.pad(texts(), pad), segments=jnp.pad(jnp.ones_like(texts()), pad))
    np.testing.assert_allclose(padded[:, : whole.shape[1]], whole, rtol=1e-4, atol=1e-5)
    shifted = moved(attach(encoder(), [dataclasses.replace(method, offset=True)], KEY))
    places = jnp.broadcast_to(jnp.arange(texts().shape[1]), texts().shape) + 2
    np.testing.assert_allclose(encode(shifted, texts()), encode(tree, texts(), positions=places), rtol=1e-4, atol=1e-5)
    assert ENCODER.heads * ENCODER.head_size == get(tree, "blocks/attn/kv/default").up.shape[-1] // 2


def test_given_keys_and_values_are_those_of_a_flat_prefix():
    k = jnp.arange(2 * 3 * WIDTH, dtype=jnp.float32).reshape(2, 3, WIDTH)
    params = with_keys_values(attach(base(), [prefix(length=3)], KEY), k, -k)
    held = get(params, "blocks/attn/kv/default")
    assert isinstance(held, Prefix)
    np.testing.assert_array_equal(held.k, -held.v)
    with pytest.raises(ValueError, match=r"holds keys and values \(2, 3, 12\); keys \(2, 2, 12\)"):
        with_keys_values(params, k[:, :2], k[:, :2])
    with pytest.raises(ValueError, match="no flat prefix called 'tone'"):
        with_keys_values(params, k, k, "tone")


def test_what_cannot_be_is_refused():
    few = put(base(), "pos_embed/embedding", jnp.zeros((8, 16)))
    with pytest.raises(ValueError, match="prefix length 8 leaves none of the 8 positions.*offset=False"):
        attach(few, [prefix(length=8)], KEY)
    attach(few, [prefix(length=8, offset=False)], KEY)
    with pytest.raises(ValueError, match="blocks/attn/kv/default is taken"):
        attach(base(), [prefix(), prefix(hidden=3)], KEY)
    with pytest.raises(TypeError, match="blocks/attn/kv/default"):
        merge(attach(base(), [prefix()], KEY))
    other = put(base(), "blocks/attn/kv/default", get(attach(encoder(), [prefix(length=2)], KEY), "blocks/attn/kv/default"))
    with pytest.raises(ValueError, match=r"Prefix 'default' has keys \(2, 16\).*2 key/value heads of 6, 12 numbers"):
        logits(jax.tree.map(lambda x: x[:2] if x.shape[0] == 3 else x, other))
    for options, message in (
        ({"length": 0}, "length 0 and hidden None"), ({"init": "text"}, "init 'text' is none of random, zeros"),
        ({"gates": 3}, "gates 3 is none of 0, 1, 2"), ({"gating": "row"}, "gating 'row' is none of token, mean"),
        ({"dropout": 1}, "dropout 1 is not in"),
    ):
        with pytest.raises(ValueError, match=message):
            prefix(**options)
