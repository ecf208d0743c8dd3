import dataclasses

import pytest
from synthetic_study import tables

from peftjax.evals.statistics.equivalence import EQUIVALENT
from peftjax.study.compare import analyse
from peftjax.study.words import answers, place, ranking


@pytest.fixture(scope="module")
def analysis():
    return analyse(tables({"A": 0.6, "B": 0.2}, data=("icd",), budgets=("small",), items=60))


def test_the_better_one_is_named_with_where_and_how_much(analysis):
    (said,) = answers(analysis, 0.03)
    assert said.startswith("**A is better than B**: icd at small (A − B: +")


def test_no_difference_is_said_in_words(analysis):
    alike = dataclasses.replace(analysis, pairs=[dataclasses.replace(pair, verdict=EQUIVALENT) for pair in analysis.pairs])
    (said,) = answers(alike, 0.03)
    assert said.startswith("**no difference between A and B (shown to be within ±3 points)**: icd at small")


def test_ranks_in_a_sentence(analysis):
    assert ranking(analysis).startswith("Mean ranks over 1 comparison: A 1.00, B 2.00; with a critical difference of 1.96, no two methods")
    assert place(("icd", "small", 0), sizes=True) == "icd at small with all records"
