import numpy as np
import pytest
from scipy import stats
from simulated_differences import rate

from peftjax.evals.statistics.sign_flip import sign_flip


def test_all_signs_by_hand():
    assert sign_flip([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)  # only + + + and - - - reach 6
    assert sign_flip([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]) == pytest.approx(2 / 8)  # a seed more is no unit more
    assert sign_flip([1.0, 2.0, 3.0, 0.0]) == pytest.approx(2 / 8)


def test_both_ways_agree_with_scipy():
    for units in (10, 40):
        d = np.random.default_rng(units).standard_normal(units) + 0.3
        theirs = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=4999, rng=np.random.default_rng(0)).pvalue
        assert sign_flip(d) == pytest.approx(theirs, abs=1e-12 if units == 10 else 0.02)


def test_equal_scores():
    assert sign_flip(np.zeros(10)) == 1.0


def test_many_units_agree_with_the_t_test():
    d = np.random.default_rng(0).standard_normal(200) + 0.15
    assert sign_flip(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.012)


def test_the_error_rate_is_the_level():
    rng = np.random.default_rng(1)
    samples = (rng.choice([-1.0, 0.0, 0.0, 1.0], size=30) for _ in range(400))
    assert 0.01 < rate(lambda d: sign_flip(d, count=199) <= 0.05, samples) < 0.085
