import numpy as np
import pytest
from simulated_differences import rate

from peftjax.evals.statistics.mcnemar import discordant, mcnemar


def test_by_hand():
    d = [1.0] + [-1.0] * 8 + [0.0] * 50
    assert discordant(d) == (1, 8)
    assert mcnemar(d) == pytest.approx(2 * (1 + 9) / 2**9)


def test_nothing_differs():
    assert mcnemar(np.zeros(10)) == 1.0


def test_graded_scores_and_several_seeds_are_refused():
    with pytest.raises(ValueError, match="found 0.5"):
        mcnemar([0.5, 1.0])
    with pytest.raises(ValueError, match="an item of 2 seeds"):
        mcnemar([[1.0, 0.0], [0.0, 1.0]])


def test_the_error_rate_is_at_most_the_level():
    rng = np.random.default_rng(0)
    assert rate(lambda d: mcnemar(d) <= 0.05, (rng.choice([-1.0, 0.0, 1.0], size=80) for _ in range(300))) < 0.07
