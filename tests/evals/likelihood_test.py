"""Log-likelihoods against log-softmax taken directly, whatever the batches, lengths and doubles."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.evals.likelihood import bucket, log_likelihoods, rolling_windows
from peftjax.models.config import DecoderConfig
from peftjax.models.decoder import Decoder, init_params

CONFIG = DecoderConfig(vocab_size=61, width=16, layers=2, heads=2, kv_heads=1, head_size=8, ff=32, tied=True, max_length=40)
MODEL, PARAMS = Decoder(CONFIG), init_params(CONFIG, jax.random.key(3))


of_64 = jax.jit(lambda tokens: jax.nn.log_softmax(MODEL.apply({"params": PARAMS}, tokens)[0]))  # one length, one program


def padded(ids):
    """[1, 64] with zeros behind, which no token before sees."""
    return np.array([[*ids, *[0] * (64 - len(ids))]])


def directly(context, continuation, limit=CONFIG.max_length):
    """One row, no padding, all logits."""
    ids = [*context, *continuation][-(limit + 1):]
    log_p = np.asarray(of_64(padded(ids[:-1])))[len(ids) - 1 - len(continuation):len(ids) - 1]
    wanted = np.array(continuation)
    return float(log_p[np.arange(len(wanted)), wanted].sum()), bool((np.argmax(log_p, -1) == wanted).all())


def random_pairs(rng, count):
    return [tuple(rng.integers(0, 61, rng.integers(1, longest)).tolist() for longest in (30, 20)) for _ in range(count)]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_equals_log_softmax_taken_directly(batch_size):
    pairs = random_pairs(np.random.default_rng(0), 17)
    pairs += [(pairs[0][0], [*pairs[0][1][:-1], 5]), pairs[0], ([7] * 50, [1, 2])]  # choices of one question, a double, one to be cut
    found = log_likelihoods(MODEL, PARAMS, pairs, batch_size=batch_size)
    for (score, greedy), (context, continuation) in zip(found, pairs, strict=True):
        expected, likeliest = directly(context, continuation)
        assert score == pytest.approx(expected, abs=1e-4) and greedy == likeliest
    assert found[0] == found[18]


def test_greedy_continuations_are_called_so():
    context, said = [3, 9, 27], []
    for _ in range(4):
        said.append(int(np.argmax(of_64(padded(context + said))[len(context + said) - 1])))
    found = log_likelihoods(MODEL, PARAMS, [(context, said), (context, [*said[:3], (said[3] + 1) % 61])])
    assert [greedy for _, greedy in found] == [True, False]


def test_the_longest_rows_are_told_first_and_each_once():
    pairs, told = random_pairs(np.random.default_rng(1), 9), []
    found = log_likelihoods(MODEL, PARAMS, pairs, batch_size=4, on_batch=told.append)
    lengths = [[len(pairs[i][0]) + len(pairs[i][1]) for i in batch] for batch in told]
    assert all(min(a) >= max(b) for a, b in zip(lengths, lengths[1:], strict=False))
    assert {i: answer for batch in told for i, answer in batch.items()} == dict(enumerate(found))


def test_what_cannot_be_scored_is_refused():
    for pair in (([], [1]), ([1], []), ([1], [2] * 41)):
        with pytest.raises(ValueError, match="pair 0 has .* at most 40 of continuation"):
            log_likelihoods(MODEL, PARAMS, [pair])
    assert log_likelihoods(MODEL, PARAMS, []) == []


@given(st.integers(0, 60), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_windows_score_each_token_once_with_all_the_context_that_fits(count, limit):
    windows = rolling_windows(range(count), -1, limit)
    assert [token for _, scored in windows for token in scored] == list(range(count))
    for number, (context, scored) in enumerate(windows):
        assert context[-1] == scored[0] - 1 and len(context) + len(scored) <= limit + 1
        if number:
            assert len(context) + len(scored) == limit + 1 and context[0] == scored[-1] - limit


@given(st.integers(1, 5000), st.sampled_from([32, 64]))
def test_buckets_are_few_and_near(size, least):
    found = bucket(size, least)
    assert size <= found <= max(least, 1.5 * size + 1) and bucket(found, least) == found


def test_few_shapes_are_compiled(monkeypatch):
    from peftjax.evals import likelihood

    shapes = set()
    score = likelihood._score
    monkeypatch.setattr(likelihood, "_score", lambda model, params, *arrays: (
        shapes.add(tuple(array.shape for array in arrays)), score(model, params, *arrays))[1])
    log_likelihoods(MODEL, PARAMS, random_pairs(np.random.default_rng(2), 60), batch_size=4)
    assert {shape[0] for shape in shapes} <= {(4, 32), (4, 40)} and len(shapes) <= 4
