"""PC3's verdict: optima between the rates of a grid, ratios and exponents over seeds."""

import math

import pytest
from study.checks.rows import failed, row, words

from peftjax.study.checks import pc3
from peftjax.study.checks.finding import FAILS, HOLDS

RATES = [10 ** (k / 2) for k in range(-8, 3)]


def runs(exponents, ratio, seeds=(0, 1)):
    """Rows in which the loss is a parabola around a best rate that follows the rank."""
    best = {"full": -2.0}
    for scale, exponent in exponents.items():
        for rank in pc3.RANKS:
            best[pc3.arm_name(scale, rank)] = -2.0 + math.log10(ratio) + exponent * math.log10(rank / pc3.SHARED)
    return [row(name, rate, seed, 1 + (math.log10(rate) - at - 0.02 * seed) ** 2) for name, at in best.items() for rate in RATES
            for seed in seeds]


def test_the_optimum_of_a_parabola_is_found_between_the_rates():
    at, inside = pc3.optimum({rate: (math.log10(rate) + 2.2) ** 2 for rate in RATES})
    assert inside and at == pytest.approx(-2.2, abs=1e-6)
    assert pc3.optimum({0.1: 3.0, 1.0: 2.0}) == (0.0, False)
    assert pc3.optimum({0.01: 3.0, 0.1: 2.0, 1.0: math.inf}) == (-1.0, True)  # between a worse one and one that diverged


def test_the_predicted_exponents_hold():
    finding = pc3.judge({"tune": {"rows": runs({"alpha/r": 0.0, "alpha/sqrt(r)": -0.5, "constant": -1.0}, ratio=10), "edge": []}})
    assert words(finding) == [HOLDS] * 6 and finding.claims[0].measured.startswith("10.00 times")
    assert "-0.50" in finding.claims[2].measured and "every optimum is inside" in finding.setting


def test_other_exponents_and_ratios_are_told():
    rows = runs({"alpha/r": 0.0, "alpha/sqrt(r)": 0.4, "constant": -1.0}, ratio=1.0)
    rows = [failed(one["arm"], one["rate"], one["seed"]) if one["rate"] > 1 else one for one in rows]
    assert words(pc3.judge({"tune": {"rows": rows, "edge": []}})) == [FAILS, HOLDS, FAILS, HOLDS, FAILS, HOLDS]


def test_early_losses_of_two_ranks_are_compared_at_a_rate_that_both_have():
    rows = runs({"alpha/r": 0.0, "alpha/sqrt(r)": -0.5, "constant": -1.0}, ratio=10)
    name = pc3.arm_name("alpha/r", 64)
    for one in rows:
        one["losses"] = [3.3 if one["arm"] == name else 3.0] * 30
    rate, apart = pc3.early(rows)
    assert rate == pytest.approx(0.1) and apart == pytest.approx([0.1, 0.1])
    rows = [failed(one["arm"], one["rate"], one["seed"]) if one["arm"] == name and one["rate"] > 0.05 else one for one in rows]
    assert pc3.early(rows)[0] == pytest.approx(10**-1.5)
    assert words(pc3.judge({"tune": {"rows": rows, "edge": []}}))[-1] == FAILS
