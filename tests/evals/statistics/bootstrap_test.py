import numpy as np
import pytest
from scipy import stats
from simulated_differences import differences, rate

from peftjax.evals.statistics.bootstrap import draws, interval
from peftjax.evals.statistics.crossed import effect


def test_one_seed_agrees_with_scipy():
    d = np.random.default_rng(1).exponential(size=150) - 0.5
    theirs = stats.bootstrap((d,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert interval(d) == pytest.approx((theirs.low, theirs.high), abs=0.06 * (theirs.high - theirs.low))


def test_spread_of_one_seed_is_the_standard_error():
    d = np.random.default_rng(2).standard_normal(9)  # few units: n draws would be too narrow by a ninth of the variance
    assert draws(d, 40_000).std() == pytest.approx(d.std(ddof=1) / 3, rel=0.02)


def test_spread_of_seeds_and_units_is_about_that_of_the_crossed_effects():
    d = differences(np.random.default_rng(3), 8, 60, seed_sd=0.5, unit_sd=1.0, error_sd=0.5)
    assert draws(d).std() == pytest.approx(effect(d).error, rel=0.1)


def test_the_same_seed_draws_the_same():
    d = np.random.default_rng(4).standard_normal((3, 20))
    assert interval(d, seed=5) == interval(d, seed=5) != interval(d, seed=6)


def test_equal_scores_have_no_width():
    assert interval(np.zeros((3, 5)), count=100) == (0.0, 0.0)


def test_eight_seeds_are_covered():
    rng = np.random.default_rng(8)

    def covered(d):
        low, high = interval(d, count=400)
        return low <= 0 <= high

    found = rate(covered, (differences(rng, 8, 40, seed_sd=0.3, unit_sd=1.0) for _ in range(200)))
    assert 0.90 <= found <= 0.99, found


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="at least 100 draws; asked for 10"):
        interval([1.0, 2.0], count=10)
