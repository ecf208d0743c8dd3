import math

from peftjax.study.rates import best, edge, first, further, rate


def test_the_grid_lies_around_the_centre():
    assert first(5) == [-2, -1, 0, 1, 2] and first(4) == [-1, 0, 1, 2]
    assert [rate(1e-3, 10**0.5, k) for k in first(3)] == [0.0003162, 0.001, 0.003162]


def test_the_best_is_the_lowest():
    assert best({-1: 2.0, 0: 1.0, 1: 1.0}) == 0
    assert best({0: math.inf}) is None


def test_edges():
    assert edge({-1: 1.0, 0: 2.0, 1: 3.0}) == -1
    assert edge({-1: 3.0, 0: 2.0, 1: 1.0}) == 1
    assert edge({-1: 3.0, 0: 1.0, 1: 2.0}) == 0
    assert edge({-1: 3.0, 0: 1.0, 1: math.inf}) == 0  # a rate that diverges is worse, so the optimum is interior
    assert edge({-1: math.inf, 0: math.inf}) == -1


def test_further_rates_lie_beyond_the_edge_or_where_the_scores_are_better():
    assert further({-1: 1.0, 0: 2.0, 1: 3.0}, 2) == [-2, -3]
    assert further({-1: 3.0, 0: 2.0, 1: 1.0}, 1) == [2]
    assert further({-1: 3.0, 0: 1.0, 1: 2.0}, 2) == [2, 3]
    assert further({-1: 2.0, 0: 1.0, 1: math.inf}, 1) == [-2]
