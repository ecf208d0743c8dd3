"""Virtual tokens of an encoder are tokens before a text, a copy for each text of a line, and the classifier reads what it is told to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import moved
from tiny_encoder import LENGTH, TINY, hidden, params, run, tokens

from peftjax.models.decoder import cut
from peftjax.models.encoder import Encoder
from peftjax.peft import BatchSplit, attach, compose, p_tuning, prefix, prompt_tuning, route

KEY = jax.random.key(0)
IDS = (7, 3)
# Each way to join and to read, and each network.
METHODS = {
    "text": [prompt_tuning(length=2)],
    "prompt": [prompt_tuning(length=2, reads="prompt")],
    "behind the norm": [prompt_tuning(length=2, offset=False)],
    "behind the norm, prompt": [p_tuning(length=3, hidden=5, offset=False, reads="prompt")],
    "LSTM": [p_tuning(length=2, hidden=3, encoder="lstm")],
    "two and a prefix": [prompt_tuning(length=1, name="b"), prompt_tuning(length=2, offset=False, reads="prompt", name="a"),
                         prefix(length=2, name="c")],
}


def prompted(name):
    return moved(attach(params(), METHODS[name], KEY))


@pytest.mark.parametrize(("reads", "place"), [("text", 2), ("prompt", 0)])
def test_virtual_tokens_are_tokens_before_the_text(reads, place):
    """Those that start as tokens give what these tokens give, at all positions; the classifier's is the text's first or theirs."""
    tree = attach(params(), [prompt_tuning(length=2, init="text", ids=IDS, reads=reads)], KEY)
    types = jnp.ones_like(tokens()).at[:, :3].set(0)
    before = jnp.broadcast_to(jnp.array(IDS), (3, 2))
    ids, typed = jnp.concatenate([before, tokens()], axis=1), jnp.concatenate([0 * before, types], axis=1)
    whole, found = hidden(params(), ids, types=typed), hidden(tree, tokens(), types=types)
    assert found.shape == (3, LENGTH, TINY.width)
    np.testing.assert_allclose(found[:, 1:], whole[:, 3:], atol=1e-5)
    np.testing.assert_allclose(found[:, 0], whole[:, place], atol=1e-5)
    assert np.abs(whole[:, 0] - whole[:, 2]).max() > 0.1
    want = run(params(), jnp.asarray(whole), Encoder(TINY), "logits")[:, place]
    np.testing.assert_allclose(run(tree, tokens(), Encoder(TINY), types=types), want, atol=1e-5)


@pytest.mark.parametrize("name", [
    "prompt", "two and a prefix",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("text", "behind the norm", "behind the norm, prompt", "LSTM")),
])  # fmt: skip
def test_a_text_is_the_same_alone_packed_and_beside_padding(name):
    """Also beside more padding than the table of positions has rows: 11 are left of 13."""
    a, b = tokens(2, 3)
    line = jnp.full((4, 15), 7).at[0, :5].set(jnp.concatenate([a, b[:2]])).at[1, :3].set(a).at[2, 13:].set(b[:2]).at[3, 12:].set(a)
    segments = jnp.zeros((4, 15), jnp.int32).at[0, :3].set(1).at[0, 3:5].set(2).at[1, :3].set(1).at[2, 13:].set(1).at[3, 12:].set(2)
    found = hidden(prompted(name), line, segments=segments, texts=3)
    np.testing.assert_allclose(found[0, :3], found[1, :3], atol=1e-5)
    np.testing.assert_allclose(found[0, 3:5], found[2, 13:], atol=1e-5)
    np.testing.assert_allclose(found[0, :3], found[3, 12:], atol=1e-5)
    assert np.isfinite(found).all()
    assert np.abs(hidden(params(), line, segments=segments)[0, :5] - found[0, :5]).max() > 0.1


@pytest.mark.parametrize("options", [{"unroll": True}, {"segments": (1, 2)}])
def test_the_ways_to_run_a_stack_agree(options):
    tree = attach(cut(params(), TINY, options.get("segments", ())), METHODS["prompt"], KEY)
    plain = attach(params(), METHODS["prompt"], KEY)
    np.testing.assert_allclose(hidden(tree, tokens(), options=tuple(options.items())), hidden(plain, tokens()), atol=1e-5)


def test_behind_the_norm_there_are_no_positions_and_texts_begin_at_the_first():
    """Through gradients: which rows of the table a text of three tokens reads behind two virtual ones."""
    def rows(offset):
        tree = attach(params(), [prompt_tuning(length=2, offset=offset)], KEY)
        gradient = jax.jit(jax.grad(lambda table: jnp.sum(
            Encoder(TINY).apply({"params": tree | {"pos_embed": {"embedding": table}}}, tokens(1, 3), method="hidden")[0] ** 3
        )))(tree["pos_embed"]["embedding"])
        return np.flatnonzero(np.abs(gradient).max(axis=1) > 1e-7).tolist()

    assert rows(True) == [2, 3, 4, 5, 6] and rows(False) == [2, 3, 4]


@pytest.mark.slow  # a program for each method
def test_rows_of_a_batch_have_their_own_virtual_tokens():
    """Each row is as it is alone, with what the classifier reads there, and those of no adapter are the base's."""
    methods = [prompt_tuning(length=2, reads="prompt", name="a"), p_tuning(length=3, hidden=4, offset=False, name="b"),
               prefix(length=2, name="c"), prompt_tuning(length=1, offset=False, reads="prompt", name="d")]
    tree, ids = attach(params(), methods, KEY), tokens(5)
    found = hidden(route(compose(tree, BatchSplit("a", "b", "c", "d")), [3, 0, -1, 1, 2]), ids)
    for row, method in enumerate((methods[3], methods[0], None, methods[1], methods[2])):
        alone = params() if method is None else attach(params(), [method], KEY)
        np.testing.assert_allclose(found[row], hidden(alone, ids)[row], atol=1e-5, err_msg=str(method))


def test_a_line_whose_texts_are_not_said_is_refused_and_one_with_more_is_not_a_number():
    tree, segments = prompted("text"), jnp.array([[1, 1, 2, 2], [1, 1, 1, 0]])
    with pytest.raises(ValueError, match="of which each text has a copy: say how many texts a row holds"):
        hidden(tree, tokens(2, 4), segments=segments)
    found = hidden(tree, tokens(2, 4), segments=segments, texts=1)
    assert np.isnan(found[0]).any() and np.isfinite(found[1]).all()
    assert np.isfinite(hidden(params(), tokens(2, 4), segments=segments)).all()
