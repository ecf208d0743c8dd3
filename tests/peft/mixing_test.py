"""Ways to mix, on matrices alone."""

import numpy as np
import pytest

from peftjax.peft.factored import Factors, dense, norm
from peftjax.peft.mixing import WAYS, agreed, cat, dare, dropped, largest, linear, prune, slerp, ties


def matrix(seed, rows=9, width=6):
    return np.random.default_rng(seed).standard_normal((rows, width))


def thin(seed, rank=2):
    draw = np.random.default_rng(seed)
    return Factors(draw.standard_normal((rank, 9)), draw.standard_normal((rank, 6)))


DELTAS, WEIGHTS = {"one": thin(0), "two": thin(1, 3)}, {"one": 0.25, "two": 0.75}
DENSE = {name: dense(delta) for name, delta in DELTAS.items()}


@pytest.mark.parametrize("way", [WAYS[name]() for name in WAYS], ids=list(WAYS))
def test_the_order_of_adapters_does_not_matter_and_the_input_stays(way):
    before = {name: delta.copy() for name, delta in DENSE.items()}
    turned = {name: DELTAS[name] for name in reversed(DELTAS)}
    np.testing.assert_allclose(dense(way(DELTAS, WEIGHTS, "p")), dense(way(turned, WEIGHTS, "p")), atol=1e-12)
    way(DENSE, WEIGHTS, "p")
    assert all(np.array_equal(DENSE[name], before[name]) for name in before)


@pytest.mark.parametrize("way", [linear(), cat(), slerp()], ids=repr)
def test_what_is_linear_keeps_low_rank_and_is_the_same_of_dense_matrices(way):
    found = way(DELTAS, WEIGHTS, "p")
    assert isinstance(found, Factors) and len(found.a) == 5
    np.testing.assert_allclose(dense(found), way(DENSE, WEIGHTS, "p"), atol=1e-12)


@pytest.mark.parametrize("way", [linear(), ties(density=1.0), slerp()], ids=repr)
def test_the_mean_of_copies_is_the_copy(way):
    """ties takes the mean itself, linear by its weights."""
    weights = {"one": 1.0, "two": 1.0} if isinstance(way, ties) else WEIGHTS
    np.testing.assert_allclose(dense(way({"one": thin(0), "two": thin(0)}, weights, "p")), dense(thin(0)), atol=1e-12)


def test_slerp_goes_along_the_sphere():
    one, other = matrix(0), matrix(1)
    other -= one * np.sum(one * other) / np.sum(one * one)
    other *= norm(one) / norm(other)
    for t in (0.0, 0.3, 1.0):
        found = slerp()({"one": one, "two": other}, {"one": 1 - t, "two": t}, "p")
        np.testing.assert_allclose(found, np.cos(t * np.pi / 2) * one + np.sin(t * np.pi / 2) * other, atol=1e-10)
        assert norm(found) == pytest.approx(norm(one))
    np.testing.assert_allclose(slerp()({"one": one, "two": 2 * one}, WEIGHTS, "p"), 1.75 * one)
    np.testing.assert_allclose(slerp()({"two": one}, WEIGHTS, "p"), 0.75 * one)


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 1.0}, {"a": 1.5, "b": -0.5}, {"a": 0.5, "b": 0.25, "c": 0.25}])
def test_slerp_takes_two_weights_of_sum_1(weights):
    with pytest.raises(ValueError, match="with weights 1 - t and t between 0 and 1"):
        slerp().check(weights)
    slerp().check(WEIGHTS), linear().check(weights)


def test_the_largest_entries_are_kept():
    values = np.array([[3.0, -5.0, 0.5], [1.0, -2.0, 4.0]])
    np.testing.assert_array_equal(largest(values, 0.5), [[3, -5, 0], [0, 0, 4]])
    assert np.count_nonzero(largest(matrix(0), 0.2)) == 10 and not largest(values, 0.1).any() and largest(values, 1.0) is values
    np.testing.assert_allclose(prune(density=0.2)(DENSE, WEIGHTS, "p"), sum(WEIGHTS[n] * largest(DENSE[n], 0.2) for n in DENSE))


def test_signs_are_elected_before_weighting_and_the_mean_is_of_those_that_agree():
    """By hand, as HF PEFT's merge_utils computes them. One of three entries may be absent; a tie is positive."""
    deltas = {"a": np.array([[2.0, -1.0, 0.0, 1.0]]), "b": np.array([[1.0, 3.0, 0.0, -1.0]]), "c": np.array([[-4.0, -1.0, 0.0, 0.0]])}
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    np.testing.assert_allclose(agreed(deltas, weights, "total"), [[-2.0, 6.0, 0.0, 1.0]])
    np.testing.assert_allclose(agreed(deltas, weights, "frequency"), [[2.0, -0.75, 0.0, 1.0]])


def test_dropping_is_a_function_of_seed_place_and_name_and_keeps_the_mean():
    values = np.ones((200, 100))
    found = dropped(values, 0.3, "seed")
    assert np.array_equal(found, dropped(values, 0.3, "seed")) and not np.array_equal(found, dropped(values, 0.3, "other"))
    assert set(np.unique(found)) == {0.0, 1 / 0.3} and abs(found.mean() - 1) < 0.05
    once = dare(density=0.5)(DENSE, WEIGHTS, "p")
    for other in (dare(density=0.5)(DENSE, WEIGHTS, "q"), dare(density=0.5, seed=1)(DENSE, WEIGHTS, "p")):
        assert not np.array_equal(once, other)
    thinned = {name: dropped(DENSE[name], 0.5, f"0/p/{name}") for name in DENSE}
    np.testing.assert_allclose(dare(density=0.5, elect=True)(DENSE, WEIGHTS, "p"), agreed(thinned, WEIGHTS, "total"))


@pytest.mark.parametrize("make", [lambda: prune(density=0.0), lambda: ties(density=1.5), lambda: ties(election="loudest")])
def test_what_lies_outside_is_refused(make):
    with pytest.raises(ValueError, match="is not in|is none of total, frequency"):
        make()
