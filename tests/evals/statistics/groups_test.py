import itertools

import pytest

from peftjax.evals.statistics.groups import indistinguishable


def test_groups_overlap():
    assert indistinguishable("abc", [("a", "c")]) == [("a", "b"), ("b", "c")]
    assert indistinguishable("abc", []) == [("a", "b", "c")]
    assert indistinguishable("abc", itertools.combinations("abc", 2)) == [("a",), ("b",), ("c",)]


def test_no_pair_of_a_group_differs_and_none_can_be_added():
    names = "abcdefg"
    different = {("a", "b"), ("a", "c"), ("d", "b"), ("e", "f"), ("g", "a"), ("c", "f")}
    found = indistinguishable(names, different)
    differ = {frozenset(pair) for pair in different}
    assert len(set(found)) == len(found)
    for group in found:
        assert not any(frozenset(pair) in differ for pair in itertools.combinations(group, 2))
        for other in set(names) - set(group):
            assert any(frozenset((other, member)) in differ for member in group)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no pair of a, b"):
        indistinguishable("ab", [("a", "x")])
