"""Macro F1: by hand, and against what it must not depend on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftjax.evals.classes import class_f1, macro_f1

PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30)


def test_by_hand():
    assert macro_f1(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx(2 / 3)
    assert class_f1(["a", "a", "c"], ["a", "b", "a"]) == {"a": 0.5, "b": 0.0, "c": 0.0}


@given(PAIRS)
def test_it_is_one_exactly_when_all_are_right_and_does_not_depend_on_the_order(pairs):
    score = macro_f1(*zip(*pairs, strict=True))
    assert 0 <= score <= 1 and (score == 1) == all(a == b for a, b in pairs)
    assert macro_f1(*zip(*reversed(pairs), strict=True)) == pytest.approx(score)
    swapped = [(b, a) for a, b in pairs]
    assert macro_f1(*zip(*swapped, strict=True)) == pytest.approx(score)


@given(PAIRS, st.integers(2, 5))
def test_copies_of_all_items_change_nothing(pairs, times):
    assert macro_f1(*zip(*(pairs * times), strict=True)) == pytest.approx(macro_f1(*zip(*pairs, strict=True)))


def test_rare_classes_count_as_much_as_frequent_ones():
    assert macro_f1(["a"] * 100, ["a"] * 99 + ["b"]) < 0.5


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="one at least"):
        macro_f1([], [])
    with pytest.raises(ValueError, match="found 1 and 2"):
        macro_f1(["a"], ["a", "b"])
