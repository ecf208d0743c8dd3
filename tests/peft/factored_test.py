"""Products that are never multiplied out give what the products give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftjax.peft.factored import Factors, dense, distance, inner, kept, norm, rank_within, scaled, shape, spectrum, total

IN, OUT = 11, 7


def factors(seed: int, rank: int, rows: int = IN, width: int = OUT) -> Factors:
    draw = np.random.default_rng(seed)
    return Factors(draw.standard_normal((rank, rows)), draw.standard_normal((rank, width)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(-3, 3)), min_size=1, max_size=4))
def test_a_sum_of_factors_is_the_sum_of_their_products(terms):
    """Of any ranks, among them 0 and more than either width."""
    matrices, weights = [factors(seed, rank) for seed, (rank, _) in enumerate(terms)], [weight for _, weight in terms]
    found, wanted = total(matrices, weights), sum(weight * dense(m) for m, weight in zip(matrices, weights, strict=True))
    assert isinstance(found, Factors) and len(found.a) == sum(rank for rank, _ in terms) and shape(found) == (IN, OUT)
    np.testing.assert_allclose(dense(found), wanted, atol=1e-12)
    np.testing.assert_allclose(dense(total([*matrices, np.ones((IN, OUT))], [*weights, 2.0])), wanted + 2, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 4, 9, 15])
def test_norms_products_and_spectra_are_those_of_the_dense_matrix(rank):
    one, other = factors(1, rank), factors(2, 3)
    found, values = spectrum(one), np.linalg.svd(dense(one), compute_uv=False)
    assert len(found.values) == min(rank, IN, OUT)
    np.testing.assert_allclose(found.values, values[: len(found.values)], atol=1e-10)
    np.testing.assert_allclose(dense(kept(found, rank)), dense(one), atol=1e-10)
    np.testing.assert_allclose(spectrum(dense(one)).values, values, atol=1e-10)
    for rows in (found.left, found.right):
        np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-10)
    assert norm(one) == pytest.approx(np.linalg.norm(dense(one))) and norm(dense(one)) == pytest.approx(norm(one))
    for theirs in (other, dense(other)):
        assert inner(one, theirs) == pytest.approx(np.sum(dense(one) * dense(other)))
        assert distance(one, theirs) == pytest.approx(np.linalg.norm(dense(one) - dense(other)))


def test_what_is_kept_is_the_nearest_matrix_of_that_rank():
    """Eckart and Young: what it is off by are the values left out."""
    one = factors(1, 6)
    found = spectrum(one)
    for rank in range(8):
        assert distance(one, kept(found, rank)) == pytest.approx(np.linalg.norm(found.values[rank:]), abs=1e-10)
        tolerance = np.linalg.norm(found.values[rank:]) / np.linalg.norm(found.values)
        assert rank_within(found.values, tolerance + 1e-12) == min(rank, 6)
        if 0 < rank < 6:
            assert rank_within(found.values, tolerance - 1e-6) == rank + 1


def test_a_difference_of_equals_is_nothing_and_half_a_weight_goes_to_each_factor():
    one = factors(1, 3)
    assert distance(one, Factors(one.a[::-1], one.b[::-1])) < 1e-14 * norm(one)
    again = scaled(one, 1.0)
    np.testing.assert_array_equal(again.a, one.a), np.testing.assert_array_equal(again.b, one.b)
    less = scaled(one, -4.0)
    np.testing.assert_array_equal(less.a, -2 * one.a), np.testing.assert_array_equal(less.b, 2 * one.b)


def test_rank_is_that_of_what_is_not_noise():
    assert rank_within(np.array([3.0, 2.0, 1e-9]), 0.0) == 2
    assert rank_within(np.zeros(3), 0.0) == rank_within(np.zeros(0), 0.1) == 0
    assert rank_within(np.array([3.0, 2.0, 1.0]), 1.0) == 0


def test_shapes_that_differ_do_not_add_up():
    with pytest.raises(ValueError, match=r"matrices of one shape add up; these are \[\(11, 7\), \(11, 6\)\]"):
        total([factors(1, 2), factors(1, 2, width=6)], [1, 1])
