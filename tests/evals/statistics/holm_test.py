import numpy as np
import pytest
from simulated_differences import rate, within

from peftjax.evals.statistics.holm import holm


def test_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == [] and holm([0.03]) == [0.03]


def test_what_is_no_p_value_is_refused():
    with pytest.raises(ValueError, match="found 1.5"):
        holm([0.5, 1.5])
    with pytest.raises(ValueError, match="found nan"):
        holm([float("nan")])


def test_the_chance_of_any_false_rejection_is_the_level():
    rng = np.random.default_rng(0)
    found = rate(lambda p: min(holm(p)) <= 0.05, (rng.uniform(size=8) for _ in range(2000)))
    assert within(found, 1 - (1 - 0.05 / 8) ** 8, 2000), found
