import numpy as np
import pytest
from synthetic_study import tables

from peftjax.evals.statistics.equivalence import BETTER, EQUIVALENT, OPEN, WORSE
from peftjax.study.compare import analyse


def verdicts(found):
    return {(pair.a, pair.b, *pair.comparison[:2]): pair.verdict for pair in found.pairs}


@pytest.fixture(scope="module")
def planted():
    return analyse(tables({"A": 0.6, "B": 0.6, "C": 0.4}, data=("icd",)))


def test_a_planted_difference_is_found_everywhere(planted):
    found = verdicts(planted)
    assert all(found["A", "C", "icd", budget] == BETTER for budget in ("small", "large"))
    assert planted.ranking.ranks[2] == 3.0
    pair = next(pair for pair in planted.pairs if (pair.a, pair.b) == ("A", "C"))
    assert pair.interval[0] < 0.2 < pair.interval[1] and pair.bootstrap[0] < pair.effect.mean < pair.bootstrap[1]
    assert pair.p_corrected >= pair.p


def test_methods_of_equal_skill_are_not_told_apart(planted):
    found = verdicts(planted)
    assert {found["A", "B", "icd", budget] for budget in ("small", "large")} <= {OPEN, EQUIVALENT}
    assert set(map(tuple, planted.groups.values())) == {(("A", "B"), ("C",))}


def test_the_same_answers_are_equivalent():
    stored = tables({"A": 0.6}, data=("icd",), budgets=("small",))
    twins = [row | {"method": method} for row in stored.items for method in ("A", "B")]
    both = {name: [row | {"method": method} for row in getattr(stored, name) for method in ("A", "B")] for name in ("runs", "trials")}
    stored.plan["study"]["methods"] = {"A": [], "B": []}
    (pair,) = analyse(type(stored)(stored.plan, both["trials"], both["runs"], twins)).pairs
    assert pair.verdict == EQUIVALENT and pair.effect.mean == 0.0 and pair.p_corrected == pair.p_signs == 1.0


def test_who_is_first_decides_the_sign():
    found = analyse(tables({"low": 0.4, "high": 0.6}, data=("icd",), budgets=("small",)))
    assert [pair.verdict for pair in found.pairs] == [WORSE]


def test_under_no_difference_hardly_anything_is_found():
    wrong = 0
    for seed in range(12):
        found = analyse(tables({"A": 0.5, "B": 0.5}, data=("icd",), budgets=("small",), items=90, seeds=(0, 1, 2), seed=seed, seed_sd=0.03))
        wrong += sum(pair.verdict in (BETTER, WORSE) for pair in found.pairs)
    assert wrong <= 3  # 12 at 5 %: more than 3 has a chance of 0.2 %


def test_standings_are_means_over_seeds_and_items(planted):
    stored = tables({"A": 0.6, "B": 0.6, "C": 0.4}, data=("icd",))
    own = [item["exact_match"] for item in stored.items if (item["data"], item["budget"], item["method"]) == ("icd", "small", "A")]
    found = planted.standings["icd", "small", 0, "A"]
    assert found.mean == pytest.approx(np.mean(own)) and found.low < found.mean < found.high
    assert np.mean(found.by_seed) == pytest.approx(found.mean) and found.loss == pytest.approx(0.4)
    assert planted.metrics == {"icd": "exact_match"}


def test_the_loss_may_be_compared_with_the_metric_beside_it():
    stored = tables({"A": 0.6, "B": 0.4}, data=("icd",), budgets=("small",), items=30)
    by_metric = analyse(stored).standings["icd", "small", 0, "A"]
    stored.plan["study"]["measure"] = "loss"
    found = analyse(stored)
    standing = found.standings["icd", "small", 0, "A"]
    assert standing.mean == pytest.approx(-0.4) and standing.metric == pytest.approx(by_metric.mean) and found.metrics == {"icd": "−loss"}
    assert [pair.effect.mean for pair in found.pairs] == [0.0]


def test_domains_are_the_beginnings_of_groups(planted):
    assert {domain for data, domain in planted.domains if data == "icd"} == {"a", "b", "c"}
    shares = [planted.domains["icd", domain]["small", 0, "A"] for domain in "abc"]
    assert np.mean(shares) == pytest.approx(planted.standings["icd", "small", 0, "A"].mean)
