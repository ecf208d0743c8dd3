"""Sight as a mask, against its definition slot by slot."""

import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models.sight import Sight

SEGMENTS = np.array([[1, 1, 2, 2, 2, 0]])
POSITIONS = np.array([[0, 1, 0, 1, 2, 0]])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 2])
def test_segments(causal, window):
    mask = Sight(jnp.asarray(SEGMENTS), jnp.asarray(POSITIONS), window=window, causal=causal).mask(1, 5, 6)
    assert mask.shape == (1, 4, 6)
    for q, k in np.ndindex(4, 6):
        q_slot = q + 1
        near = window is None or q_slot - k < window
        want = SEGMENTS[0, q_slot] == SEGMENTS[0, k] > 0 and (k <= q_slot or not causal) and near
        assert mask[0, q, k] == want, (q_slot, k)


@pytest.mark.parametrize("window", [None, 3])
def test_virtual_tokens_are_seen_by_all_segments_behind_them(window):
    """Two of them, and a row that has the second one only."""
    segments = np.array([[1, 1, 1, 1, 2, 0], [0, 1, 1, 1, 2, 0]])
    positions = np.array([[0, 1, 2, 3, 2, 0], [0, 0, 1, 2, 1, 0]])
    mask = Sight(jnp.asarray(segments), jnp.asarray(positions), window=window, first=2).mask(0, 6, 6)
    for row, q, k in np.ndindex(2, 5, 6):
        near = window is None or positions[row, q] - positions[row, k] < window
        want = segments[row, k] > 0 and k <= q and near and (k < 2 or segments[row, q] == segments[row, k])
        assert mask[row, q, k] == want, (row, q, k)


def test_a_shared_prefix_is_seen_by_all_runs_behind_it_and_they_not_by_each_other():
    until, positions = np.array([[6, 6, 4, 4, 6, 6, 0]]), np.array([[0, 1, 2, 3, 2, 3, 0]])
    mask = Sight(jnp.asarray(until > 0).astype(jnp.int32), jnp.asarray(positions), jnp.asarray(until)).mask(0, 7, 7)[0]
    seen = [set(np.flatnonzero(row)) for row in np.asarray(mask)]
    assert seen[:6] == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 4}, {0, 1, 4, 5}] and not mask[:, 6].any()
    windowed = Sight(jnp.asarray(until > 0).astype(jnp.int32), jnp.asarray(positions), jnp.asarray(until), 2).mask(0, 7, 7)[0]
    assert set(np.flatnonzero(windowed[4])) == {1, 4}  # two slots lie between, one position
