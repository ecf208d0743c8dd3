"""Filters are Hugging Face's, draws follow what is left, and a row's draw is its own."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from peftjax.models.sampling import Filters, Sampling, choose, draw, filtered, knobs, kth_largest, nucleus

GOLDEN = np.load(Path(__file__).parents[1] / "golden/sampling/golden.npz")
ASKED = json.loads(str(GOLDEN["settings"]))
floats = st.floats(-9, 9, width=32, allow_subnormal=False)
scores_of = arrays.arrays(np.float32, (2, 7), elements=floats | st.sampled_from([np.float32(-np.inf), np.float32(0), np.float32(-0.0)]))
with_a_token = scores_of.filter(lambda scores: np.isfinite(scores).any(axis=-1).all())


def penalised(logits, ids, by):
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, axis=1)
    return np.where(seen, np.where(logits < 0, logits * np.float32(by), logits / np.float32(by)), logits)


@pytest.mark.parametrize("number", range(len(ASKED)))
def test_scores_are_those_of_transformers(number):
    sampling, logits = Sampling(**ASKED[number]), GOLDEN["logits"]
    values, filters = knobs([sampling] * len(logits), range(len(logits)))
    got = filtered(penalised(logits, GOLDEN["ids"], sampling.repetition_penalty), values, filters)
    np.testing.assert_allclose(got, GOLDEN["scores"][number], rtol=1e-6)


def test_the_penalty_is_part_of_the_choice():
    for by in (1.7, 0.6, 40.0):
        values, filters = knobs([Sampling(repetition_penalty=by)] * 4, range(4))
        seen = penalised(np.ones_like(GOLDEN["logits"]), GOLDEN["ids"], 2.0) < 1
        got = choose(GOLDEN["logits"], values, filters, jnp.int32(0), seen)
        np.testing.assert_array_equal(got, penalised(GOLDEN["logits"], GOLDEN["ids"], by).argmax(axis=-1))


@settings(max_examples=40, deadline=None)
@given(with_a_token, st.integers(1, 7))
def test_the_kth_largest_is_that_of_a_sort(scores, count):
    want = np.sort(scores, axis=-1)[:, -count]
    np.testing.assert_array_equal(kth_largest(jnp.asarray(scores), jnp.full(2, count, jnp.int32)), want)


@settings(max_examples=40, deadline=None)
@given(with_a_token, st.floats(0, 0.999))
def test_the_nucleus_has_its_mass_and_no_token_to_spare(scores, mass):
    least = np.asarray(nucleus(jnp.asarray(scores), jnp.full(2, mass, jnp.float32)))[:, None]
    weights = np.exp(scores.astype(np.float64))
    weights /= weights.sum(axis=-1, keepdims=True)
    kept = scores >= least
    assert kept.any(axis=-1).all()
    assert ((weights * kept).sum(axis=-1) >= mass - 1e-5).all()
    assert ((weights * (scores > least + 1e-5)).sum(axis=-1) <= mass + 1e-5).all()  # nearer ones are of one probability in float32


@settings(max_examples=25, deadline=None)
@given(with_a_token, st.integers(0, 2**32 - 1), st.sampled_from([{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}]))
def test_the_narrowest_filters_are_greedy(scores, seed, narrow):
    values, filters = knobs([Sampling(temperature=3.0, seed=seed, **narrow)] * 2, range(2))
    chosen = np.asarray(choose(jnp.asarray(scores), values, filters, jnp.int32(0), None))
    np.testing.assert_allclose(np.take_along_axis(scores, chosen[:, None], 1)[:, 0], scores.max(axis=-1), atol=1e-5)


def drawn(scores, samplings, numbers=None, index=0):
    values, filters = knobs(samplings, range(len(samplings)) if numbers is None else numbers)
    return np.asarray(choose(jnp.asarray(scores), values, filters, jnp.int32(index), None))


def test_draws_follow_the_softmax_of_what_is_left():
    rows = 20_000
    logits = np.tile(np.log(np.array([[0.2, 0.5, 0.3, 0.0]], np.float32) + 1e-30), (rows, 1))
    for sampling, want in [
        (Sampling(1.0), [0.2, 0.5, 0.3]),
        (Sampling(0.5, seed=3), np.square([0.2, 0.5, 0.3]) / 0.38),
        (Sampling(1.0, top_k=2), [0.0, 0.625, 0.375]),
        (Sampling(1.0, top_p=0.6), [0.0, 0.625, 0.375]),
        (Sampling(1.0, min_p=0.5), [0.0, 0.625, 0.375]),
    ]:
        counts = np.bincount(drawn(logits, [sampling] * rows), minlength=4) / rows
        np.testing.assert_allclose(counts, [*want, 0.0], atol=0.02)
        assert (counts[:3][np.array(want) == 0] == 0).all()


@settings(max_examples=30, deadline=None)
@given(with_a_token, st.integers(0, 2**32 - 1))
def test_what_was_taken_out_is_never_drawn(scores, seed):
    chosen = np.asarray(draw(jnp.asarray(scores), jax.random.split(jax.random.key(seed), 2)))
    assert np.isfinite(np.take_along_axis(scores, chosen[:, None], 1)).all()


def test_a_draw_is_a_function_of_seed_number_and_index():
    scores = np.zeros((6, 50), np.float32)
    one, other = Sampling(1.0, seed=1), Sampling(1.0, seed=2)
    rows = drawn(scores, [one] * 6)
    assert (drawn(scores, [one] * 6) == rows).all() and len(set(rows.tolist())) > 3
    assert (drawn(scores, [other] * 6) != rows).any() and (drawn(scores, [one] * 6, index=1) != rows).any()
    assert (drawn(scores, [one] * 6, numbers=[3, 4, 5, 0, 1, 2]) == rows[[3, 4, 5, 0, 1, 2]]).all()
    assert drawn(scores[:1], [one], numbers=[4]) == rows[4:5]


def test_rows_of_one_batch_ask_for_different_things():
    rng = np.random.default_rng(0)
    scores = (2 * rng.standard_normal((5, 30))).astype(np.float32)
    asked = [Sampling(), Sampling(2.0), Sampling(2.0, top_k=3), Sampling(2.0, top_p=0.3), Sampling(2.0, min_p=0.3, seed=9)]
    alone = [drawn(scores[i:i + 1], [asked[i]], numbers=[i])[0] for i in range(5)]
    assert drawn(scores, asked).tolist() == alone


def test_only_the_filters_that_are_asked_for_are_compiled():
    assert knobs([Sampling()], [0])[1] == Filters(False, False, False, False, False)
    assert knobs([Sampling(), Sampling(1.0, top_k=4)], [0, 1])[1] == Filters(True, True, False, False, False)
    assert knobs([Sampling(repetition_penalty=1.1)], [0])[1] == Filters(False, False, False, False, True)
    assert knobs([Sampling(0.5, min_p=0.1, top_p=0.9)], [0])[1] == Filters(True, False, True, True, False)


@pytest.mark.parametrize(("asked", "message"), [
    ({"temperature": -1}, "temperature is -1"), ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": 1, "top_k": -2}, "top_k is -2"), ({"temperature": 1, "top_p": 1.5}, "top_p is 1.5"),
    ({"temperature": 1, "min_p": -0.1}, "min_p is -0.1"), ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"seed": -1}, "seed is -1"), ({"top_k": 5, "top_p": 0.9}, "top_k=5, top_p=0.9 chooses among draws, but at temperature 0"),
])
def test_numbers_out_of_range_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**asked)
    dataclasses.replace(Sampling(), repetition_penalty=1.2, seed=3)
