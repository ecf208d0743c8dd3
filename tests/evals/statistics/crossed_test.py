import numpy as np
import pytest
from scipy import stats
from simulated_differences import differences, rate

from peftjax.evals.statistics.crossed import effect


def test_by_hand():
    found = effect([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]])  # mean squares: seeds 6, units 6, error 2
    assert (found.mean, found.seeds, found.units) == (3.0, 2, 3)
    assert found.error**2 == pytest.approx((6 + 6 - 2) / 6)
    assert found.dof == pytest.approx(10**2 / (36 / 1 + 36 / 2 + 4 / 2))


def test_one_seed_is_the_paired_t_test():
    a, b = np.random.default_rng(0).standard_normal((2, 12))
    theirs = stats.ttest_rel(a, b)
    found = effect(a - b)
    assert found.p() == pytest.approx(theirs.pvalue)
    assert found.interval(0.9) == pytest.approx(tuple(theirs.confidence_interval(0.9)))
    assert found.p_above(0.0) == pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue)


def test_units_that_are_all_alike_leave_the_t_test_of_the_seeds():
    of_seed = np.array([0.3, -0.1, 0.4, 0.2])
    found = effect(np.repeat(of_seed[:, None], 7, axis=1))
    assert found.p() == pytest.approx(stats.ttest_1samp(of_seed, 0.0).pvalue)


def test_seeds_that_are_all_alike_leave_the_t_test_of_the_units():
    of_unit = np.array([0.3, -0.1, 0.4, 0.2, 0.0])
    found = effect(np.repeat(of_unit[None], 3, axis=0))
    assert found.p() == pytest.approx(stats.ttest_1samp(of_unit, 0.0).pvalue)


def test_no_spread_at_all():
    same = effect(np.zeros((3, 10)))
    assert (same.p(), same.interval(), same.error) == (1.0, (0.0, 0.0), 0.0)
    always = effect(np.ones((3, 10)))
    assert always.p() == 2.0**-9 and always.p_above(0.5) == 2.0**-10 and always.p_above(1.0) == 1.0


@pytest.mark.parametrize(("seeds", "spread"), [(3, {"seed_sd": 0.5, "unit_sd": 0.5}), (5, {"seed_sd": 0.2, "unit_sd": 0.5}),
                                               (5, {"seed_sd": 1.0, "unit_sd": 0.0})])
def test_the_error_rate_is_about_the_level(seeds, spread):
    rng = np.random.default_rng(seeds)
    found = rate(lambda d: effect(d).p() <= 0.05, (differences(rng, seeds, 40, **spread) for _ in range(1000)))
    assert 0.025 < found < 0.08, found


def test_seeds_that_agree_by_chance_are_not_taken_for_certain():
    rng = np.random.default_rng(9)
    assert rate(lambda d: effect(d).p() <= 0.05, (differences(rng, 3, 40) for _ in range(500))) < 0.04


def test_a_real_difference_is_found():
    rng = np.random.default_rng(7)
    found = rate(lambda d: effect(d).p() <= 0.05, (differences(rng, 4, 100, mean=0.5, seed_sd=0.1, unit_sd=0.5) for _ in range(200)))
    assert found > 0.95
