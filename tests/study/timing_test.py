"""Turns and ratios on a clock that the test moves: no time is measured here."""

import numpy as np
import pytest

from peftjax.study.timing import LEAST, Ratio, in_turns, over, spread


class Clock:
    """A clock that programs move."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def program(self, name, seconds):
        def call():
            self.now += seconds
            self.order.append(name)
            return seconds

        return call


def test_a_drift_that_all_share_leaves_the_ratio_alone():
    base = [1.0, 1.1, 3.0, 1.2, 9.0, 1.0]
    ratio = over([1.5 * seconds for seconds in base], base)
    assert ratio.value == pytest.approx(1.5) and ratio.low == pytest.approx(1.5) and ratio.high == pytest.approx(1.5) and ratio.kept


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    import numpy as np

    rng, covered = np.random.default_rng(0), 0
    for number in range(200):
        noise = np.exp(0.1 * rng.standard_normal((2, 30)))
        ratio = over(1.2 * noise[0], noise[1], seed=number)
        covered += ratio.low <= 1.2 <= ratio.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_wide_interval_is_no_result():
    assert Ratio(1.0, 0.96, 1.05).kept and not Ratio(1.0, 0.9, 1.05).kept and Ratio(2.0, 1.92, 2.1).kept
    assert not over([1.0, 2.0, 1.0, 3.0, 0.5], [1.0] * 5).kept


def test_rounds_call_every_program_once_and_orders_differ():
    clock = Clock()
    seconds = in_turns({name: clock.program(name, 1.0) for name in "abc"}, rounds=8, clock=lambda: clock.now)
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys("abc", 8)
    rounds = ["".join(clock.order[at:at + 3]) for at in range(3, 27, 3)]  # the first three warm up
    assert all(sorted(one) == list("abc") for one in rounds) and len(set(rounds)) > 1


@pytest.mark.parametrize("budget, rounds", [(20.0, 10), (1000.0, 30), (0.1, LEAST)])
def test_the_budget_decides_how_many_rounds_there_are(budget, rounds):
    clock = Clock()
    seconds = in_turns({"a": clock.program("a", 0.5), "b": clock.program("b", 1.5)}, 30, budget, clock=lambda: clock.now)
    assert len(seconds["a"]) == rounds


def test_spread_is_median_and_quartiles():
    found = spread([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0)


def test_rounds_must_be_the_same():
    with pytest.raises(ValueError, match="2 rounds are compared with 1"):
        over([1.0, 2.0], [1.0])


def test_sittings_that_differ_widen_the_interval_and_those_that_agree_do_not():
    noise = np.random.default_rng(0).normal(0, 0.002, 60)
    base = np.ones(60)
    agree, differ = 1.1 + noise, np.concatenate([1.1 + noise[:20], 1.5 + noise[20:40], 1.5 + noise[40:]])
    one, two = over(agree, base), over(agree, base, sittings=(20, 20, 20))
    assert two.value == one.value and two.high - two.low < 3 * (one.high - one.low) < 0.02
    wide = over(differ, base, sittings=(20, 20, 20))
    assert wide.low < 1.2 and wide.high > 1.4 and over(differ, base).low > 1.4  # rounds alone know nothing of it
    assert over(agree, base, sittings=(60,)) == one
