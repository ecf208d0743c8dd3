"""What a budget buys is within it, and is what gains most."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY, base

from peftjax.nn.tree import get
from peftjax.peft.attach import attach
from peftjax.peft.budget import Gains, of_covariances, of_gradients, spend
from peftjax.peft.select import parameters

PATHS = [t.path for t in parameters(base(), ("kernel",)) if t.layers]
SHAPES = {path: get(base(), path).shape for path in PATHS}


def gradients(seed):
    draw = np.random.default_rng(seed)
    return {path: draw.standard_normal(SHAPES[path]) * draw.uniform(0.1, 3, (2, 1, 1)) for path in PATHS}


def bought(methods):
    """Rows by (path, layer), read off what is attached: rows past a layer's own rank are zero."""
    params = attach(base(TINY, (1, 1)) if any(m.layers for m in methods) else base(), methods, jax.random.key(0))
    found = {}
    for target in parameters(params, ("kernel",)):
        if hasattr(target.value, "a"):
            for row, layer in zip(np.asarray(target.value.a), target.layers, strict=True):
                found[target.logical, layer] = int(row.any(axis=-1).sum())
    return found


def cost(rows):
    return sum(rank * sum(SHAPES[path][1:]) for (path, _), rank in rows.items())


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 9), st.integers(100, 6000), st.booleans())
def test_what_is_attached_is_within_the_budget_and_nothing_that_fits_is_left(seed, budget, cut):
    rows = bought(spend(of_gradients(gradients(seed)), parameters=budget, cut=cut, max_rank=9))
    assert 0 < cost(rows) <= budget
    open_to_more = [sum(SHAPES[path][1:]) for (path, _), rank in rows.items() if rank < min(9, *SHAPES[path][1:])]
    assert not open_to_more or budget - cost(rows) < min(open_to_more)


def test_rows_go_where_they_gain_most():
    gains = {path: Gains(np.ones((2, 4)) * 0.001, SHAPES[path][1:]) for path in PATHS}
    up = "blocks/mlp/up/kernel"
    gains[up] = Gains(np.array([[9.0, 8.0, 7.0, 0.0], [9.0, 0.0, 0.0, 0.0]]), SHAPES[up][1:])
    rows = bought(spend(gains, parameters=4 * 44))
    assert rows == {(up, 0): 3, (up, 1): 1}
    gains[up] = Gains(np.array([[9.0, 8.0, 7.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), SHAPES[up][1:])
    (method,) = spend(gains, parameters=3 * 44, cut=True)
    assert method.layers == (0,) and method.rank == 3 and method.targets == ("up_proj",)


def test_bytes_are_numbers_times_their_size_and_settings_pass_through():
    gains, also = of_gradients(gradients(0)), {"dropout": 0.1}
    assert spend(gains, nbytes=8000, bytes_each=2, settings=also, name="tone") == spend(gains, parameters=4000, settings=also, name="tone")
    assert all(m.dropout == 0.1 and m.name == "tone" for m in spend(gains, nbytes=8000, settings=also, name="tone"))
    assert max(bought(spend(gains, parameters=10**6, max_rank=3)).values()) == 3


def test_gains_are_squares_of_singular_values_or_shares_of_variance():
    gradient = gradients(1)[PATHS[0]]
    found = of_gradients({PATHS[0]: gradient})[PATHS[0]]
    np.testing.assert_allclose(found.values.sum(axis=-1), np.square(gradient).sum(axis=(-2, -1)))
    moments = np.einsum("lni,lnj->lij", gradient, gradient)
    shares = of_covariances({"p": moments, "none": np.zeros((3, 3))}, {"p": 7, "none": 2})
    np.testing.assert_allclose(shares["p"].values.sum(axis=-1), 1) and not shares["none"].values.any()
    assert shares["p"].shape == (moments.shape[-1], 7) and (np.diff(shares["p"].values) <= 1e-12).all()


@pytest.mark.parametrize(("asked", "message"), [
    ({}, "a budget is of parameters or of nbytes"), ({"parameters": 9, "nbytes": 9}, "one of the two"),
    ({"parameters": 20}, "a budget of 20 parameters buys no row anywhere: the cheapest stack of rows takes 56"),
    ({"parameters": 900, "max_rank": 0}, "max_rank 0 is not positive"),
])
def test_a_budget_that_buys_nothing_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        spend(of_gradients(gradients(0)), **asked)


def test_gains_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="gains at p are not finite"):
        spend({"p": Gains(np.array([np.nan]), (2, 2))}, parameters=99)
