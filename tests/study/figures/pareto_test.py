from peftjax.study.figures.pareto import frontier


def test_the_frontier_is_of_those_that_none_beats_on_both():
    assert frontier([(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.6), (4, 0.7)]) == [(1, 0.5), (3, 0.7)]
    assert frontier([]) == []
