"""Context in the decoder: virtual tokens are tokens, keys and values before a sequence those of tokens; in every layout, with a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, base, moved, run, tokens

from peftjax.models.attention import empty_cache
from peftjax.models.decoder import Decoder, cut, unrolled
from peftjax.models.generate import generate_ids
from peftjax.nn.kernels import Entry, node
from peftjax.nn.tree import flatten, get, put
from peftjax.peft.attach import attach
from peftjax.peft.partition import combine, partition
from peftjax.peft.prefix import prefix, with_keys_values
from peftjax.peft.prompt import prompt_tuning

KEY, FRONT = jax.random.key(0), 3
CONFIGS = {
    "llama": TINY,
    "gemma": dataclasses.replace(
        TINY, window=3, full_layers=(1,), local_rope_base=10.0, post_norms=True, qk_norm=True, attention_softcap=2.0, embedding_scale=4.0
    ),
    "gpt2": dataclasses.replace(
        TINY, learned_positions=True, max_length=16, layer_norm=True, qkv_bias=True, out_bias=True, mlp_bias=True, gated=False
    ),
}
METHODS = (
    prompt_tuning(length=2, name="b"), prompt_tuning(length=1, name="a"),
    prefix(length=2, slides=True), prefix(length=1, offset=False, name="c"),
)
every_config = pytest.mark.parametrize("name", CONFIGS)


@functools.cache
def adapted(name, methods=METHODS):
    return moved(attach(base(CONFIGS[name]), methods, KEY))


@functools.partial(jax.jit, static_argnames=("model", "method"))
def call(params, *args, model, method="hidden", **inputs):
    return model.apply({"params": params}, *args, method=method, **inputs)


def hidden(params, ids, name, model=None, **inputs):
    return np.asarray(call(params, ids, model=model or Decoder(CONFIGS[name]), **inputs)[0])


@every_config
def test_virtual_tokens_are_tokens_before_the_line(name):
    """The same numbers as further rows of the embedding, in the order of the adapters' names."""
    params, ids = adapted(name, METHODS[:2]), tokens()
    table = params["embed"]["embedding"]
    rows = [get(params, f"prompt/{adapter}").embedding for adapter in "ab"]
    longer = dataclasses.replace(CONFIGS[name], vocab_size=TINY.vocab_size + FRONT)
    tree = put(put(base(CONFIGS[name]), "embed/embedding", jnp.concatenate([table, *rows])), "head/kernel", jnp.zeros((16, 43)))
    front = jnp.broadcast_to(TINY.vocab_size + jnp.arange(FRONT), (len(ids), FRONT))
    want = hidden(tree, jnp.concatenate([front, ids], axis=1), name, Decoder(longer))[:, FRONT:]
    np.testing.assert_allclose(hidden(params, ids, name), want, rtol=1e-4, atol=1e-5)
    assert np.abs(hidden(base(CONFIGS[name]), ids, name) - want).max() > 1e-2


@every_config
def test_keys_and_values_of_a_text_before_the_sequence_are_the_text_before_it(name):
    config, ids, text = CONFIGS[name], tokens(), tokens(1, FRONT, seed=5)
    _, cache = call(base(config), text, model=Decoder(config), cache=empty_cache(config, 1, FRONT))
    k, v = (jnp.swapaxes(x[:, 0], 1, 2).reshape(config.layers, FRONT, -1) for x in (cache.k, cache.v))
    params = with_keys_values(attach(base(config), [prefix(length=FRONT, slides=True)], KEY), k, v)
    whole = jnp.concatenate([jnp.broadcast_to(text, (len(ids), FRONT)), ids], axis=1)
    np.testing.assert_allclose(hidden(params, ids, name), hidden(base(config), whole, name)[:, FRONT:], rtol=1e-4, atol=1e-5)


# A packed line, and its two sequences alone: padded on the right, and on the left.
LINES = jnp.array([[7, 3, 5, 1, 2], [7, 3, 0, 0, 0], [0, 0, 5, 1, 2]])
PARTS = jnp.array([[1, 1, 2, 2, 2], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])


@every_config
def test_packed_sequences_are_the_sequences_alone_with_and_without_a_cache(name):
    params, model = adapted(name), Decoder(CONFIGS[name])
    whole = hidden(params, LINES, name, segments=PARTS)
    np.testing.assert_allclose(whole[0, :2], whole[1, :2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(whole[0, 2:], whole[2, 2:], rtol=1e-4, atol=1e-5)
    assert np.isfinite(whole).all()
    cache, pieces = call(params, empty_cache(CONFIGS[name], 3, FRONT + 6), model=model, method="begin"), []
    for start, stop in ((0, 4), (4, 5)):
        part, cache = call(params, LINES[:, start:stop], model=model, segments=PARTS[:, start:stop], cache=cache)
        pieces.append(part)
    assert cache.used == FRONT + 5 and cache.first == FRONT
    used = np.asarray(PARTS > 0)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1)[used], whole[used], rtol=1e-4, atol=1e-5)


def test_lines_with_shared_prefixes_are_the_sequences_alone():
    """Two sequences behind two tokens, of which one copy stands in the line."""
    until, places = jnp.array([[6, 6, 4, 4, 6, 6]]), jnp.array([[0, 1, 2, 3, 2, 3]])
    line = tokens(1, 6, seed=3)
    got = hidden(adapted("llama"), line, "llama", segments=jnp.ones_like(line), positions=places, until=until)
    for own in (slice(2, 4), slice(4, 6)):
        alone = hidden(adapted("llama"), jnp.concatenate([line[:, :2], line[:, own]], axis=1), "llama")
        np.testing.assert_allclose(got[:, own], alone[:, 2:], rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnames=("model",))
def gradient(params, model):
    trainable, frozen = partition(params)

    def loss(trainable):
        return jnp.sum(jnp.square(model.apply({"params": combine(trainable, frozen)}, tokens(), method="hidden")[0]))

    return jax.grad(loss)(trainable)


@pytest.mark.slow  # five backward passes: fifteen seconds
def test_gradients_are_those_of_every_layout_and_of_differences():
    want = flatten(gradient(adapted("gemma"), Decoder(CONFIGS["gemma"])))
    for options in ({"unroll": True}, {"remat": "dots"}, {"remat": "block"}):
        for path, leaf in flatten(gradient(adapted("gemma"), Decoder(CONFIGS["gemma"], **options))).items():
            np.testing.assert_allclose(leaf, want[path], rtol=1e-3, atol=1e-3, err_msg=f"{options} {path}")
    for path in want:
        leaf = flatten(adapted("gemma"))[path]
        step = 1e-2 * np.sign(want[path]) / np.sqrt(leaf.size)
        ends = []
        for sign in (1, -1):
            params = jax.tree.map(lambda x, to=leaf, by=sign * step: x + by if x is to else x, adapted("gemma"))
            ends.append(np.square(hidden(params, tokens(), "gemma").astype(np.float64)).sum())
        np.testing.assert_allclose(ends[0] - ends[1], 2 * np.sum(np.abs(want[path])) * np.abs(step).max(), rtol=2e-2, err_msg=path)


def test_cut_and_unrolled_stacks_compute_the_same():
    want = hidden(adapted("gpt2"), tokens(), "gpt2")
    parts = cut(adapted("gpt2"), CONFIGS["gpt2"], (1, 1))
    np.testing.assert_allclose(
        hidden(parts, tokens(), "gpt2", Decoder(CONFIGS["gpt2"], segments=(1, 1))), want, rtol=1e-4, atol=1e-5
    )
    model, alone = unrolled(Decoder(CONFIGS["gpt2"]), adapted("gpt2"))
    np.testing.assert_allclose(hidden(alone, tokens(), "gpt2", model), want, rtol=1e-4, atol=1e-5)


PROMPTS, NEW = [[3, 1, 4], [1], [5, 9, 2, 6, 5]], 5


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generation_is_full_recomputation(name):
    model, params = Decoder(CONFIGS[name]), adapted(name)
    got = generate_ids(model, params, PROMPTS, -1, max_new=NEW)
    assert got != generate_ids(model, base(CONFIGS[name]), PROMPTS, -1, max_new=NEW)
    for prompt, new in zip(PROMPTS, got, strict=True):
        ids = [*prompt, *new]
        padded, parts = (jnp.array([row + [0] * (10 - len(ids))]) for row in (ids, [1] * len(ids)))
        logits = run(params, padded, model, segments=parts)[0]
        assert jnp.argmax(logits[len(prompt) - 1:len(ids) - 1], axis=-1).tolist() == new


def test_learned_positions_are_a_bound_behind_what_stands_before():
    """16 positions: 2 of a prefix, 3 virtual tokens, 3 of the prompt leave room for 8."""
    model, params = Decoder(CONFIGS["gpt2"]), adapted("gpt2")
    assert len(generate_ids(model, params, [[3, 1, 4]], -1, max_new=8)[0]) == 8
    with pytest.raises(ValueError, match="3 tokens and 9 new ones behind 5 of an adapter are more than the 16 positions"):
        generate_ids(model, params, [[3, 1, 4]], -1, max_new=9)


def test_a_cache_that_lacks_the_virtual_tokens_or_room_for_them_is_refused():
    model, params = Decoder(TINY), adapted("llama")
    with pytest.raises(ValueError, match="the tree holds 3 virtual tokens and the cache 0; begin an empty cache with Decoder.begin"):
        model.apply({"params": params}, tokens(), cache=empty_cache(TINY, 3, 9), method="hidden")
    with pytest.raises(ValueError, match="a cache of 2 slots has no room for 3 virtual tokens"):
        model.apply({"params": params}, empty_cache(TINY, 3, 2), method="begin")


@node(arrays=("entry", "rows_with"), static=("name",))
@dataclasses.dataclass(frozen=True)
class Some(Entry):
    """An entry for some rows of a batch. rows_with: bool [B], with a leading L in a stack."""

    entry: Entry
    rows_with: jax.Array
    name: str

    @property
    def length(self):
        return self.entry.length

    def rows(self, batch, dtype, key):
        return self.entry.rows(batch, dtype, key)[0], jnp.broadcast_to(self.rows_with[:, None], (batch, self.length))

    def keys_values(self, h, tokens, key):
        own = self.entry.keys_values(h, tokens, key)
        return own._replace(seen=jnp.broadcast_to(self.rows_with[:, None], (h.shape[0], own.k.shape[-2])))

    def shift(self, batch):
        return jnp.where(self.rows_with[0], self.entry.shift(batch), 0)


@every_config
def test_rows_of_a_batch_may_have_different_context(name):
    """Row 0 has one prompt and one prefix, row 1 nothing, row 2 all; each as alone."""
    has = {"prompt/b": [1, 0, 1], "prompt/a": [0, 0, 1], "blocks/attn/kv/default": [1, 0, 1], "blocks/attn/kv/c": [0, 0, 1]}
    whole = mixed = adapted(name)
    for path, rows in has.items():
        rows = jnp.array(rows, bool)
        rows = jnp.broadcast_to(rows, (TINY.layers, 3)) if path.startswith("blocks") else rows
        mixed = put(mixed, path, Some(get(mixed, path), rows, path.rpartition("/")[2]))
    got = hidden(mixed, LINES, name, segments=PARTS)
    for row in range(3):
        alone = whole
        for path, rows in has.items():
            alone = alone if rows[row] else put(alone, path, None)
        want = hidden(alone, LINES, name, segments=PARTS)
        used = np.asarray(PARTS[row] > 0)
        np.testing.assert_allclose(got[row, used], want[row, used], rtol=1e-4, atol=1e-5)
    model = Decoder(CONFIGS[name])
    cache = call(mixed, empty_cache(CONFIGS[name], 3, FRONT + 5), model=model, method="begin")
    cached, _ = call(mixed, LINES, model=model, segments=PARTS, cache=cache)
    np.testing.assert_allclose(np.asarray(cached)[np.asarray(PARTS > 0)], got[np.asarray(PARTS > 0)], rtol=1e-4, atol=1e-5)
