import numpy as np
import pytest

from peftjax.evals.statistics.differences import by_group, paired


def test_pairs_are_subtracted_seed_by_seed():
    assert paired([[1, 0], [1, 1]], [[0, 0], [1, 0]]).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert paired([1, 0], [0, 0]).tolist() == [[1.0, 0.0]]


def test_what_is_not_paired_is_refused():
    with pytest.raises(ValueError, match=r"same seeds and items.*\(2, 2\) and \(1, 2\)"):
        paired([[1, 0], [1, 1]], [[1, 0]])
    with pytest.raises(ValueError, match="at least two units"):
        paired([[1], [2]], [[1], [1]])
    with pytest.raises(ValueError, match="1 of 2 paired differences are not finite"):
        paired([1.0, np.nan], [1.0, 1.0])


def test_groups_keep_the_mean_over_items():
    d = np.array([[1.0, 0.0, 0.0, -1.0, 1.0], [0.0, 0.0, 1.0, 0.0, 1.0]])
    grouped = by_group(d, ["a", "a", "b", "c", "c"])
    assert grouped.shape == (2, 3)
    assert grouped.mean() == pytest.approx(d.mean())
    assert grouped.mean(axis=1) == pytest.approx(d.mean(axis=1))
    m = d.mean()
    assert grouped[0, 1] == pytest.approx(m + 3 / 5 * (0.0 - m))  # the group b of one item


def test_groups_of_one_item_change_nothing():
    d = np.random.default_rng(0).standard_normal((3, 4))
    assert by_group(d, list("abcd")) == pytest.approx(d)


def test_groups_must_fit_the_items():
    with pytest.raises(ValueError, match="each of 2 items; found 1"):
        by_group([[1.0, 2.0]], ["a"])
