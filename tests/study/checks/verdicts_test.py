"""PC5, PC8 and PC9 from known losses: differences, ties and what cannot be told apart."""

import numpy as np
import pytest
from study.checks.rows import failed, row, words

from peftjax.evals.statistics.equivalence import BETTER, WORSE
from peftjax.study.checks import pc4p, pc5, pc8, pc9, pc11p
from peftjax.study.checks.arms import compare, differences
from peftjax.study.checks.finding import FAILS, HOLDS, OPEN, REPORTED, TIE

SEEDS = range(5)


def measured(losses, at, extra=(), spread=0.02):
    """Tuning and measuring in which each arm has one loss at its own rate."""
    rows = [row(name, at[name], seed, loss, spread=spread) for name, loss in losses.items() for seed in SEEDS]
    tuning = [row(name, factor * at[name], 100, loss + off, spread=0) for name, loss in losses.items()
              for factor, off in ((0.3, 0.1), (1, 0.0), (3, 0.1))]
    return {"tune": {"rows": tuning, "edge": []}, "measure": {"rows": rows + list(extra), "at": at}}


def test_differences_have_the_mean_of_the_losses():
    rows = [row("a", 1.0, seed, 1.0, spread=0.1) for seed in SEEDS] + [row("b", 2.0, seed, 1.5, spread=0.1) for seed in SEEDS]
    d = differences(rows, ("a", 1.0), ("b", 2.0))
    assert d.shape == (5, 40)
    mean = np.mean([one["test"] for one in rows[:5]]) - np.mean([one["test"] for one in rows[5:]])
    assert d.mean() == pytest.approx(mean, abs=1e-9)
    with pytest.raises(ValueError, match="a and b have no runs of the same seeds"):
        differences(rows, ("a", 1.0), ("b", 1.0))


@pytest.mark.parametrize("loss,spread,word", [(0.9, 0.02, BETTER), (1.1, 0.02, WORSE), (1.0, 0.005, TIE), (1.0, 1.0, OPEN)])
def test_a_pair_is_better_worse_a_tie_or_open(loss, spread, word):
    rows = [row(name, 1.0, seed, at, spread=spread) for name, at in (("a", loss), ("b", 1.0)) for seed in SEEDS]
    assert compare(rows, [(("a", 1.0), ("b", 1.0))], region=0.02)[0].word == word


def test_groups_are_counted_and_not_items():
    rows = [row(name, 1.0, seed, 1.0, spread=0.3) for name in "ab" for seed in SEEDS]
    assert compare(rows, [(("a", 1.0), ("b", 1.0))], region=0.02)[0].effect.units == 20


def test_variants_that_tie_and_one_that_does_not():
    at = {"LoRA": 1e-2, "rsLoRA": 3e-3, "DoRA": 1e-2}
    same = [row("rsLoRA", 1e-2, seed, 1.3) for seed in SEEDS]
    finding = pc9.judge(measured({"LoRA": 1.0, "rsLoRA": 1.005, "DoRA": 1.0}, at, same, spread=0.01))
    assert words(finding)[:3] == [HOLDS] * 3
    assert [line[-1] for line in finding.tables[0].rows] == ["", TIE, TIE]
    better = pc9.judge(measured({"LoRA": 1.0, "rsLoRA": 0.9, "DoRA": 1.0}, at, same))
    assert words(better)[:3] == [FAILS, FAILS, HOLDS] and better.claims[1].measured == "rsLoRA (better)"


def test_a_variant_that_diverged_at_the_rate_of_lora_is_said_to():
    finding = pc9.judge(measured({"LoRA": 1.0, "rsLoRA": 1.0}, {"LoRA": 1e-2, "rsLoRA": 3e-3}, [failed("rsLoRA", 1e-2, s) for s in SEEDS]))
    assert finding.tables[0].rows[1][3] == "diverged"


def test_pissa_is_faster_and_ends_alike():
    at = {"LoRA": 1e-2, "PiSSA": 3e-3}
    fast = [row("PiSSA", 1e-2, seed, 1.0, losses=np.full(30, 0.8)) for seed in SEEDS]
    assert words(pc8.judge(measured({"LoRA": 1.0, "PiSSA": 1.0}, at, fast, spread=0.005))) == [HOLDS, TIE, HOLDS]
    slow = [row("PiSSA", 1e-2, seed, 1.0, losses=np.full(30, 1.2)) for seed in SEEDS]
    found = words(pc8.judge(measured({"LoRA": 1.0, "PiSSA": 1.3}, {"LoRA": 1e-2, "PiSSA": 3e-2}, slow, spread=0.005)))
    assert found == [FAILS, WORSE, FAILS]


def test_what_pissa_is_fast_by_is_told_against_its_controls():
    """Directions, where both controls are slower; the size of the start, where random directions are as fast."""
    at = dict.fromkeys(("LoRA", "PiSSA", pc8.MINOR, pc8.RANDOM), 1e-2)

    def judged(random, minor_end=1.0):
        ends = {"LoRA": 1.0, "PiSSA": 1.2, pc8.MINOR: minor_end, pc8.RANDOM: 1.1}
        found = measured(ends, at, spread=0.005)
        early = {"LoRA": 1.0, "PiSSA": 0.8, pc8.MINOR: 1.0, pc8.RANDOM: random}
        for one in found["measure"]["rows"]:
            one["losses"] = list(np.full(30, early[one["arm"]]))
        return pc8.judge(found)

    assert words(judged(0.9)) == [HOLDS, WORSE, FAILS, HOLDS, HOLDS, TIE, REPORTED]
    assert words(judged(0.7, minor_end=0.9)) == [HOLDS, WORSE, FAILS, HOLDS, FAILS, BETTER, REPORTED]
    assert "random directions" in judged(0.7).claims[4].what and judged(0.7).claims[6].measured[:3] in ("+9.", "+10")


def test_the_correction_over_the_controls_leaves_pissas_own_test_what_it_was():
    at = dict.fromkeys(("LoRA", "PiSSA", pc8.MINOR, pc8.RANDOM), 1e-2)
    ends = {"LoRA": 1.0, "PiSSA": 1.02, pc8.MINOR: 1.0, pc8.RANDOM: 1.0}
    with_them = pc8.judge(measured(ends, at, spread=0.1)).claims[1]
    two = ("LoRA", "PiSSA")
    assert with_them == pc8.judge(measured({n: ends[n] for n in two}, {n: at[n] for n in two}, spread=0.1)).claims[1]


def test_scales_that_tie_once_their_rates_are_their_own():
    at = {pc4p.PLAIN: 2e-2, pc4p.STABILISED: 1e-2}
    finding = pc4p.judge(measured({pc4p.PLAIN: 1.0, pc4p.STABILISED: 1.001}, at, spread=0.003))
    assert words(finding) == [TIE, REPORTED] and finding.claims[1].measured == "2 times"
    assert words(pc4p.judge(measured({pc4p.PLAIN: 1.0, pc4p.STABILISED: 1.1}, at, spread=0.003)))[0] == FAILS
    assert words(pc4p.judge(measured({pc4p.PLAIN: 1.0, pc4p.STABILISED: 1.0}, at, spread=0.5)))[0] == OPEN


def test_where_lora_goes():
    at = {"attention": 1e-2, "MLP": 1e-2, "all linear": 1e-2}
    assert words(pc5.judge(measured({"attention": 1.1, "MLP": 1.0, "all linear": 0.95}, at))) == [HOLDS, HOLDS]
    assert words(pc5.judge(measured({"attention": 0.9, "MLP": 1.0, "all linear": 1.1}, at))) == [pc5.NOT, pc5.NOT]
    assert words(pc5.judge(measured({"attention": 1.0, "MLP": 1.0, "all linear": 1.0}, at, spread=0.5))) == [OPEN, OPEN]


def test_a_quantised_base():
    at = {"dense base": 1e-2, "NF4 base": 1e-2, "int4 base": 1e-2}
    losses = {"dense base": 1.0, "NF4 base": 1.001, "int4 base": 1.1}
    assert words(pc11p.judge(measured(losses, at, spread=0.005))) == [TIE, FAILS, HOLDS]
    assert words(pc11p.judge(measured({"dense base": 1.0, "NF4 base": 1.1, "int4 base": 1.0}, at, spread=0.005))) == [FAILS, TIE, FAILS]
    assert words(pc11p.judge(measured(dict.fromkeys(at, 1.0), at, spread=0.5))) == [OPEN] * 3
