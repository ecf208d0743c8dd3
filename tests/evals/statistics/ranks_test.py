import math

import numpy as np
import pytest
from simulated_differences import rate

from peftjax.evals.statistics.ranks import critical_difference, friedman, mean_ranks, wilcoxon_holm


def test_ranks_share_ties():
    assert mean_ranks([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]]).tolist() == [1.25, 2.25, 2.5]


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_difference_against_the_published_table(methods, q):
    """Demsar (2006), table 5a."""
    assert critical_difference(methods, 14) == pytest.approx(q * math.sqrt(methods * (methods + 1) / (6 * 14)), rel=1e-3)


def test_friedman_by_hand():
    scores = [[3.0, 2.0, 1.0]] * 4  # the same order in 4 blocks: chi2 = 12 / (4*3*4) * (4**2 + 8**2 + 12**2) - 3*4*4 = 8
    assert friedman(scores) == pytest.approx(math.exp(-8 / 2))  # chi2 with two degrees
    assert friedman([[1.0, 1.0, 1.0]] * 3) == 1.0


def test_wilcoxon_of_all_pairs():
    scores = np.array([[b + 0.5 + 0.01 * b, b, b] for b in range(8)], float)
    found = wilcoxon_holm(scores)
    assert found[0, 1] == pytest.approx(3 * 2 / 2**8) and found[1, 2] == 1.0


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="three methods or more; found 2"):
        friedman([[1.0, 2.0]])
    with pytest.raises(ValueError, match="finite scores"):
        mean_ranks([[1.0, math.nan]])
    with pytest.raises(ValueError, match="two methods and a block"):
        critical_difference(1, 3)


def test_the_error_rate_is_about_the_level():
    rng = np.random.default_rng(0)
    assert 0.02 < rate(lambda x: friedman(x) <= 0.05, (rng.standard_normal((20, 4)) for _ in range(600))) < 0.08
