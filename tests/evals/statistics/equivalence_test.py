import numpy as np
import pytest
from scipy import stats
from simulated_differences import differences, rate

from peftjax.evals.statistics.crossed import Effect, effect
from peftjax.evals.statistics.equivalence import BETTER, EQUIVALENT, OPEN, WORSE, tost, verdict


def test_it_is_the_larger_of_two_one_sided_tests():
    d = np.random.default_rng(0).standard_normal(30) * 0.1
    above = stats.ttest_1samp(d, -0.05, alternative="greater").pvalue
    below = stats.ttest_1samp(d, 0.05, alternative="less").pvalue
    assert tost(effect(d), 0.05) == pytest.approx(max(above, below))


def test_it_is_the_interval_of_90_percent_inside_the_region():
    d = np.random.default_rng(1).standard_normal((3, 50))
    found = effect(d)
    edge = max(map(abs, found.interval(0.9)))
    assert tost(found, edge) == pytest.approx(0.05)


def test_equal_scores_are_equivalent():
    assert tost(effect(np.zeros((3, 20))), 0.01) <= 2.0**-20


def test_a_region_must_be_positive():
    with pytest.raises(ValueError, match="must be positive.*found 0"):
        tost(effect([1.0, 2.0]), 0)


def test_a_difference_at_the_edge_of_the_region_is_seldom_called_equivalent():
    rng = np.random.default_rng(2)
    samples = (differences(rng, 4, 60, mean=0.5, seed_sd=0.1, unit_sd=0.5) for _ in range(1000))
    assert rate(lambda d: tost(effect(d), 0.5) <= 0.05, samples) < 0.075


def test_what_may_be_said():
    up, down = Effect(0.2, 0.05, 10.0, 3, 50), Effect(-0.2, 0.05, 10.0, 3, 50)
    assert verdict(up, 0.01, 0.9) == BETTER and verdict(down, 0.01, 0.9) == WORSE
    assert verdict(up, 0.01, 0.01) == EQUIVALENT  # found, and too small to matter
    assert verdict(up, 0.4, 0.01) == EQUIVALENT
    assert verdict(up, 0.4, 0.3) == OPEN
