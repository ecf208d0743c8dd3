import dataclasses

import pytest
from synthetic_study import tables

from peftjax.study.compare import analyse
from peftjax.study.fair import untuned


@pytest.fixture(scope="module")
def stored():
    return tables({"A": 0.5, "B": 0.6}, data=("icd",), budgets=("small",), seeds=(0, 1), items=12)


def reasons(stored, **changes):
    return analyse(dataclasses.replace(stored, **changes)).refused.get(("icd", "small", 0), [])


def of(rows, method, **wanted):
    return [row for row in rows if row["method"] == method and all(row[k] == v for k, v in wanted.items())]


def without(rows, gone):
    return [row for row in rows if row not in gone]


def test_like_is_compared_with_like(stored):
    assert reasons(stored) == []


def test_unequal_trials_are_refused(stored):
    assert reasons(stored, trials=without(stored.trials, of(stored.trials, "B", k=-2))) == ["trials differ: A has 5, B has 4"]


def test_an_optimum_at_the_edge_is_refused(stored):
    trials = [row | {"score": float(row["k"])} if row["method"] == "A" else row for row in stored.trials]
    assert reasons(stored, trials=trials) == ["A: the best learning rate, 0.0001, is the lowest of 5 tried"]
    assert untuned([]) == "no learning rate was tried"


def test_a_seed_that_is_missing_or_failed_is_refused(stored):
    gone = of(stored.runs, "B", seed=1)
    assert reasons(stored, runs=without(stored.runs, gone)) == ["B has not run seed 1 yet"]
    failed = [row | {"error": "diverged"} if row in gone else row for row in stored.runs]
    assert reasons(stored, runs=failed) == ["seed 1 of B failed: diverged"]


def test_other_data_or_another_base_is_refused(stored):
    for field, name in (("records", "records of data"), ("base", "bases")):
        runs = [row | {field: "other"} if row["method"] == "B" else row for row in stored.runs]
        assert reasons(stored, runs=runs)[0].startswith(f"{name} differ: A has 1 (alone: ")


def test_other_settings_are_refused_unless_time_decides_the_steps(stored):
    runs = [row | {"settings": row["settings"] | {"train.steps": 200}} if row["method"] == "B" else row for row in stored.runs]
    assert "settings differ" in reasons(stored, runs=runs)[0]
    trials = [row | {"settings": row["settings"] | {"train.steps": 200}} if row["method"] == "B" else row for row in stored.trials]
    study = stored.plan["study"] | {"budgets": {"small": {"time": 3.0}}}
    assert reasons(stored, runs=runs, trials=trials, plan=stored.plan | {"study": study}) == []


def test_other_items_are_refused(stored):
    gone = of(stored.items, "B", seed=0, id="icd-003")
    assert len(gone) == 1
    assert reasons(stored, items=without(stored.items, gone)) == ["test items differ: A has 24 (alone: (0, 'icd-003')), B has 23"]


@pytest.mark.parametrize(("score", "which"), [(0.0, "floor, 0 %"), (1.0, "ceiling, 100 %")])
def test_a_metric_at_its_limit_is_no_comparison(stored, score, which):
    """Where nobody answers anything rightly, equal scores are no proof of equal methods; one item that differs is one that may tell."""
    items = [row | {"exact_match": score} for row in stored.items]
    assert reasons(stored, items=items)[0].startswith(f"exact match is at its {which} on every item of all methods")
    assert reasons(stored, items=[items[0] | {"exact_match": 1 - score}, *items[1:]]) == []
    study = stored.plan["study"] | {"measure": "loss"}
    assert reasons(stored, items=items, plan=stored.plan | {"study": study}) == []
