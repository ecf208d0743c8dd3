"""Batches of several data sets on each other."""

import numpy as np
import pytest

from peftjax.data.packing import Batch, assemble
from peftjax.data.tokens import TokenRows
from peftjax.train.population.batches import padding, stacked

LENGTHS = (3, 2, 4)
ROWS = TokenRows(np.arange(9, dtype=np.int32), np.cumsum([0, *LENGTHS]), np.array([1, 1, 2], np.int32), np.arange(3))


def batch(slots: int, shared: bool, length: int = 8) -> Batch:
    return assemble(ROWS, [[(0, 0), (1, 0)], [(2, 0)]], length, slots, shared=shared)


def test_places_hold_their_batches_and_free_ones_padding():
    like = padding([batch(4, False), batch(6, True)])
    found = stacked({1: batch(4, False), 2: batch(6, True)}, like, 4)
    assert found.tokens.shape == (4, 2, 8) and found.targets.shape == (4, 2, 6) and found.types is None
    for at, given in ((1, batch(4, False)), (2, batch(6, True))):
        np.testing.assert_array_equal(found.tokens[at], given.tokens)
        np.testing.assert_array_equal(found.targets[at][:, : given.targets.shape[1]], given.targets)
        assert found.weights[at].sum() == given.weights.sum()
        np.testing.assert_array_equal(found.until[at], batch(6, True).until)  # rows that share nothing: each ends with its segment
    assert not found.tokens[0].any() and not found.weights[3].any()


def test_batches_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        padding([batch(4, False), batch(4, False, length=9)])
