"""Who goes on at a rung, and what is refused."""

import math

import pytest

from peftjax.train.population import Halving


def test_the_better_share_goes_on_and_of_equals_the_earlier():
    halving = Halving(rungs=(10, 20), keep=0.5)
    assert halving.survivors(0, [3.0, 1.0, 2.0, 1.0, 5.0]) == [1, 2, 3]
    assert Halving((10,), keep=(1,)).survivors(0, [2.0, 1.0, 1.0]) == [1]
    assert Halving((10,), keep=(7,)).survivors(0, [2.0, 1.0]) == [0, 1]


def test_a_loss_that_is_not_a_number_never_goes_on():
    assert Halving((10,), keep=1.0).survivors(0, [math.nan, 2.0, math.inf]) == [1]


@pytest.mark.parametrize(("options", "reason"), [
    ({"rungs": ()}, "ascend"), ({"rungs": (20, 10)}, "ascend"), ({"rungs": (10,), "keep": 0.0}, "share"),
    ({"rungs": (10, 20), "keep": (3,)}, "each of its 2 rungs"),
])
def test_what_makes_no_sense_is_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        Halving(**options)
