"""PC12's verdicts from known times and losses, and a tiny search by halving that takes the steps it should."""

import numpy as np
import pytest
from study.checks.rows import words

from peftjax.study.checks import pc12
from peftjax.study.checks.finding import FAILS, HOLDS, OPEN, REPORTED
from peftjax.train.bench_population import small_base


def measured(speeds, steps=6, found=0.1, spread=0.01):
    """Times of eight members at 32, 128 and 512 tokens, and a search of two rates over two seeds."""
    rng = np.random.default_rng(0)
    timed = {
        f"8 of {tokens}": {"members": 8, "tokens": tokens, "together": [1.0] * 9, "solo": list(speed * np.exp(spread * rng.normal(size=9)))}
        for tokens, speed in zip((32, 128, 512), speeds, strict=True)
    }
    losses = {0.1: 1.0, 0.3: 1.2, 1.0: None}
    every = [{"seed": seed, "rate": rate, "loss": loss, "steps": 20} for seed in (0, 1) for rate, loss in losses.items()]
    some = [{"seed": seed, "rate": rate, "loss": loss if rate == found else None, "steps": steps}
            for seed in (0, 1) for rate, loss in losses.items()]
    return timed | {"all": {"rows": every}, "halving": {"rows": some}}


def test_what_was_predicted_holds():
    finding = pc12.judge(measured((3.0, 2.0, 1.2)))
    assert words(finding) == [HOLDS, HOLDS, REPORTED, HOLDS, HOLDS] and finding.claims[3].measured == "70.0%"


def test_times_alone_are_judged_without_a_search():
    assert words(pc12.judge({name: one for name, one in measured((3.0, 2.0, 1.2)).items() if "tokens" in one})) == [HOLDS, HOLDS, REPORTED]


def test_slower_members_other_winners_and_few_savings_are_told():
    assert words(pc12.judge(measured((1.5, 1.6, 1.2), steps=15, found=0.3))) == [FAILS, FAILS, REPORTED, FAILS, FAILS]
    assert words(pc12.judge(measured((2.0, 1.6, 1.2), spread=0.3)))[0] == OPEN
    assert "0.2000 nats above" in pc12.judge(measured((3.0, 2.0, 1.2), found=0.3)).claims[4].measured


def test_a_rate_that_diverged_or_stopped_wins_nothing():
    rows = [{"seed": 0, "rate": 1.0, "loss": None, "steps": 3}, {"seed": 0, "rate": 0.1, "loss": 2.0, "steps": 9}]
    assert pc12.winners(rows) == {0: (0.1, 2.0)}


@pytest.mark.slow  # compiles a solo step and a population's
def test_steps_are_timed_in_turns():
    found = pc12.speed_up(small_base, 2, 1, 16, turns=3)
    assert found["members"] == 2 and found["tokens"] == 16 and len(found["solo"]) == len(found["together"]) == 3
    assert min(*found["solo"], *found["together"]) > 0
