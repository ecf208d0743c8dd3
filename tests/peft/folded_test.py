"""Folding computes once what an encoder makes, and leaves nothing of it."""

import jax
import numpy as np
from tiny import TINY, base, logits, moved, shapes

from peftjax.models.decoder import cut
from peftjax.nn.tree import get
from peftjax.peft.attach import adapters, attach
from peftjax.peft.compose import compose
from peftjax.peft.composition import BatchSplit
from peftjax.peft.folded import folded, folded_methods
from peftjax.peft.lora import lora
from peftjax.peft.prefix import Prefix, prefix
from peftjax.peft.prompt import Prompt, p_tuning
from peftjax.peft.route import route

KEY = jax.random.key(0)
METHODS = [p_tuning(length=2, hidden=5, name="tone"), prefix(length=3, hidden=4, gates=1), lora(rank=2)]


def test_the_folded_tree_computes_the_same_and_is_that_of_the_folded_methods():
    params = moved(attach(base(), METHODS, KEY))
    plain = folded(params)
    assert isinstance(get(plain, "prompt/tone"), Prompt) and isinstance(get(plain, "blocks/attn/kv/default"), Prefix)
    assert "shared" not in plain and adapters(plain) == ["default", "tone"] and "shared" in params
    np.testing.assert_allclose(logits(plain), logits(params), rtol=1e-5, atol=1e-5)
    assert shapes(plain) == shapes(attach(base(), folded_methods(METHODS), KEY))
    assert folded_methods(METHODS)[2] is METHODS[2]


def test_an_lstm_is_folded_into_what_it_computes():
    method = p_tuning(length=2, hidden=3, encoder="lstm")
    params = moved(attach(base(), [method], KEY))
    plain = folded(params)
    np.testing.assert_array_equal(get(plain, "prompt/default").embedding, get(params, "prompt/default").folded().embedding)
    assert shapes(plain) == shapes(attach(base(), folded_methods([method]), KEY))


def test_a_cut_stack_is_folded_layer_by_layer():
    parts = cut(moved(attach(base(), METHODS, KEY)), TINY, (1, 1))
    np.testing.assert_allclose(logits(folded(parts), segments=(1, 1)), logits(parts, segments=(1, 1)), rtol=1e-5, atol=1e-5)


def test_what_is_for_some_rows_is_folded_too():
    params = compose(moved(attach(base(), METHODS[:2], KEY)), BatchSplit("tone", "default"))
    rows = route(params, [1, 0, 1])
    np.testing.assert_allclose(logits(folded(rows)), logits(rows), rtol=1e-5, atol=1e-5)
    assert isinstance(get(folded(rows), "prompt/tone").base, Prompt) and "shared" not in folded(rows)
