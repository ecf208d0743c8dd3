"""Virtual tokens start where their init says, are what their encoder makes of them, train whole, and are refused where they cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMOL, TINY, base, logits, moved, train
from tiny_encoder import params as encoder

from peftjax.models.decoder import abstract_params
from peftjax.nn.quant import Scheme, quantise
from peftjax.nn.tree import get, put
from peftjax.peft.attach import attach, detach
from peftjax.peft.lora import lora
from peftjax.peft.merge import merge
from peftjax.peft.partition import partition, size
from peftjax.peft.prompt import p_tuning, prompt_tuning

KEY = jax.random.key(0)


def entry(method, params=None):
    return get(attach(base() if params is None else params, [method], KEY), f"prompt/{method.name}")


def test_random_virtual_tokens_are_uniform():
    wide = abstract_params(dataclasses.replace(TINY, width=400))
    values = entry(prompt_tuning(length=50), jax.tree.map(lambda x: jnp.zeros(x.shape), wide)).embedding
    assert values.shape == (50, 400) and np.abs(values).max() <= 0.5
    assert abs(values.mean()) < 0.01 and abs(values.std() - 12**-0.5) < 0.01


def test_virtual_tokens_may_start_as_tokens():
    table = base()["embed"]["embedding"]
    text = entry(prompt_tuning(length=5, init="text", ids=(7, 3))).embedding
    np.testing.assert_array_equal(text, table[jnp.array([7, 3, 7, 3, 7])])
    np.testing.assert_array_equal(entry(prompt_tuning(length=1, init="text", ids=(7, 3))).embedding, table[7:8])
    drawn = entry(prompt_tuning(length=6, init="vocabulary")).embedding
    rows = [np.flatnonzero((np.asarray(table) == row).all(axis=1)) for row in np.asarray(drawn)]
    assert all(len(row) == 1 for row in rows) and len({int(row[0]) for row in rows}) > 2


def test_the_start_is_the_bases_rows_whatever_else_is_attached():
    method = prompt_tuning(length=2, init="text", ids=(7, 3), name="tone")
    adapted = moved(attach(base(), [lora(rank=2, targets="embed_tokens")], KEY))
    np.testing.assert_array_equal(entry(method, adapted).embedding, entry(method).embedding)


def test_a_quantised_embedding_gives_the_rows_that_it_stands_for():
    table = quantise(jnp.tile(base()["embed"]["embedding"], (1, 4)), Scheme("int8"), rows=True)
    params = {"embed": {"embedding": table}}
    text = entry(prompt_tuning(length=2, init="text", ids=(7, 3)), params).embedding
    np.testing.assert_allclose(text, table.merge()[jnp.array([7, 3])], rtol=1e-6)


def test_an_encoder_is_its_formula_and_starts_as_pytorchs_layers():
    network = entry(p_tuning(length=3, hidden=9))
    h = np.asarray(network.embedding)
    for weight, bias in ((network.down.T, network.down_bias), (network.middle, network.middle_bias)):
        h = np.maximum(h @ np.asarray(weight) + np.asarray(bias), 0)
    want = h @ np.asarray(network.up) + np.asarray(network.up_bias)
    np.testing.assert_allclose(network.rows(1, jnp.float32)[0], want, rtol=1e-5, atol=1e-6)
    for field, fan in {"down": 16, "down_bias": 16, "middle": 9, "middle_bias": 9, "up": 9, "up_bias": 9}.items():
        assert 0.6 * fan**-0.5 < np.abs(getattr(network, field)).max() <= fan**-0.5, field


def lstm_by_hand(x, inputs, states, biases):
    """PyTorch's cell, a step after the other: gates i, f, g, o."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    hidden, cell, out = np.zeros(states.shape[-1]), np.zeros(states.shape[-1]), []
    for row in x:
        i, f, g, o = np.split(inputs @ row + biases[0] + states @ hidden + biases[1], 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        out.append(hidden)
    return np.stack(out)


@pytest.mark.parametrize("depth", [1, 3])
def test_an_lstm_reads_in_both_directions_layer_on_layer(depth):
    network = jax.tree.map(np.asarray, entry(p_tuning(length=4, hidden=3, encoder="lstm", depth=depth)))
    h = network.embedding
    for number in range(depth):
        inputs = network.first if number == 0 else network.deeper[number - 1]
        states, biases = network.states[number], network.biases[number]
        h = np.concatenate([lstm_by_hand(h, inputs[0], states[0], biases[0]),
                            lstm_by_hand(h[::-1], inputs[1], states[1], biases[1])[::-1]], axis=1)
    want = np.maximum(h @ network.middle + network.middle_bias, 0) @ network.up + network.up_bias
    np.testing.assert_allclose(network.rows(1, jnp.float32)[0], want, rtol=1e-5, atol=1e-6)
    for leaf, fan in ((network.first, 3), (network.states, 3), (network.biases, 3), (network.middle, 6), (network.up, 6)):
        assert 0.6 * fan**-0.5 < np.abs(leaf).max() <= fan**-0.5


# of the LSTM: P D, 8 M (D + M + 2) in the first layer, 8 M (3 M + 2) in the second, then 2 M (2 M + 1) and D (2 M + 1)
@pytest.mark.parametrize(("method", "count"), [
    (prompt_tuning(length=10), 5_760), (p_tuning(length=10, hidden=128), 170_432),
    (p_tuning(length=10, hidden=128, encoder="lstm"), 5_760 + 1024 * 706 + 1024 * 386 + 256 * 257 + 576 * 257),
])
def test_the_number_of_trainables_on_smollm2(method, count):
    params = jax.eval_shape(lambda params: attach(params, [method], KEY), abstract_params(SMOL))
    assert size(partition(params)[0])[0] == count


def test_training_moves_the_logits_and_detaching_gives_the_base():
    state, frozen, metrics = train(attach(base(), [prompt_tuning(length=3)], KEY), steps=3)
    assert np.abs(get(state.trainable, "prompt/default").embedding - entry(prompt_tuning(length=3)).embedding).max() > 1e-3
    assert all(value["grad_norm"] > 0 for value in metrics)
    assert np.abs(logits(attach(base(), [prompt_tuning(length=3)], KEY)) - logits(base())).max() > 1e-2
    np.testing.assert_array_equal(logits(detach(frozen)), logits(base()))


@pytest.mark.parametrize("method", [p_tuning(length=3, hidden=4, offset=False, reads="prompt"), p_tuning(length=3, reads="prompt")])
def test_what_an_encoders_network_makes_joins_and_is_read_as_itself(method):
    network = entry(method, encoder())
    plain, left = network.folded(), method.folded()
    assert (plain.offset, plain.reads) == (left.offset, left.reads) == (method.offset, "prompt")
    assert left.ahead == method.ahead == (3 if method.offset else 0) and left.virtual == method.virtual == 3


def test_what_cannot_be_is_refused():
    for method in (prompt_tuning(reads="prompt"), p_tuning(offset=False)):
        with pytest.raises(ValueError, match=r"offset=.*, reads=.*they are for encoders \(BERT, RoBERTa\)"):
            attach(base(), [method], KEY)
    with pytest.raises(ValueError, match="prompt_tuning length 13 leaves none of the 13 positions"):
        attach(encoder(), [prompt_tuning(length=13)], KEY)
    assert entry(prompt_tuning(length=13, offset=False), encoder()).length == 13  # which takes no positions
    few = put(base(), "pos_embed/embedding", jnp.zeros((8, 16)))
    with pytest.raises(ValueError, match="p_tuning length 8 leaves none of the 8 positions"):
        attach(few, [p_tuning(length=8)], KEY)
    with pytest.raises(ValueError, match="prompt/default is taken"):
        attach(base(), [prompt_tuning(), p_tuning()], KEY)
    with pytest.raises(ValueError, match=r"ids \[40\] lie outside the vocabulary of 40"):
        attach(base(), [prompt_tuning(init="text", ids=(40,))], KEY)
    with pytest.raises(ValueError, match="text='so' has no ids yet, and a tree of parameters has no tokenizer"):
        attach(base(), [prompt_tuning(init="text", text="so")], KEY)
    with pytest.raises(TypeError, match="prompt/default"):
        merge(attach(base(), [prompt_tuning()], KEY))
    for options, message in (
        ({"length": 0}, "length 0 is not positive"), ({"init": "texts"}, "init 'texts' is none of random, vocabulary, text"),
        ({"reads": "promt"}, "reads 'promt' is none of text, prompt .did you mean 'prompt'"),
        ({"init": "text"}, "needs text or ids for init='text'"), ({"ids": (1,)}, "needs text or ids for init='text'"),
        ({"text": "so"}, "needs text or ids for init='text'"),
    ):
        with pytest.raises(ValueError, match=message):
            prompt_tuning(**options)
    with pytest.raises(ValueError, match=r"encoder 'lsmt' is none of mlp, lstm .did you mean 'lstm'"):
        p_tuning(encoder="lsmt")
    with pytest.raises(ValueError, match="depth 3 must be positive, and belongs to encoder='lstm'"):
        p_tuning(depth=3)
    with pytest.raises(ValueError, match="length 2 and hidden 0 must be positive"):
        p_tuning(length=2, hidden=0)
