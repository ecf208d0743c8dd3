"""The running mean under the curves, and which curves are drawn."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftjax.train.curves import apart, smoothed, write_curves

numbers = st.floats(-100, 100)


@given(st.lists(numbers, min_size=1), st.floats(0, 0.99))
def test_the_running_mean_stays_within_what_it_has_seen_and_leaves_constants_alone(values, weight):
    means = smoothed(values, weight)
    for count, mean in enumerate(means, 1):
        assert min(values[:count]) - 1e-9 <= mean <= max(values[:count]) + 1e-9
    assert smoothed([values[0]] * 5, weight) == pytest.approx([values[0]] * 5)
    assert smoothed(values, 0.0) == values


def test_numbers_that_are_not_finite_are_passed_over():
    assert math.isnan(smoothed([math.nan, 1.0], 0.5)[0])
    assert smoothed([1.0, math.inf, math.nan, 1.0], 0.5) == [1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("log, evaluations, names", [
    ([], [], []),
    ([{"step": 1, "loss": 2.0}], [], ["loss.png"]),
    ([{"step": 1, "learning_rate": 0.0}], [{"step": 0, "forgetting": 0.0}], ["learning_rate.png", "forgetting.png"]),
    ([{"step": 1, "loss": "NaN"}],
     [{"step": 0, "metrics": {"accuracy": {"mean": 1, "low": 0.5, "high": 1}}}, {"step": 1}],
     ["loss.png", "metrics.png"]),
])
def test_only_curves_with_numbers_are_drawn(tmp_path, log, evaluations, names):
    assert write_curves(tmp_path / "curves", log, evaluations) == names
    assert sorted(path.name for path in (tmp_path / "curves").iterdir()) == sorted(names)


def test_labels_of_a_logarithmic_axis_do_not_touch():
    assert apart([38.176, 38.912, 39.2, 154.784, 155.648, 155.824]) == [38.0, 150.0]
    assert apart([0.1, 0.003162, 0.01, 0.03162]) == [0.0032, 0.01, 0.032, 0.1]
    assert apart([128, 16, 256]) == [16, 128, 256]  # a rank is none that nobody asked for
    assert apart([]) == []
