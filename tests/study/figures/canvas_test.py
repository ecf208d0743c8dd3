from peftjax.study.figures.canvas import comparisons, log_ticks, panels


def test_a_logarithmic_axis_is_marked_at_its_values_alone():
    _, (axes,) = panels(1)
    axes.set_xscale("log")
    axes.plot([0.003162, 0.01, 0.03162], [1.0, 2.0, 3.0])
    log_ticks(axes, [0.003162, 0.01, 0.03162])
    assert axes.get_xticks().tolist() == [0.0032, 0.01, 0.032] and len(axes.xaxis.get_minorticklocs()) == 0
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0032", "0.01", "0.032"]


def test_each_comparison_has_a_title():
    rows = [{"data": "icd", "budget": "small", "size": 0}, {"data": "icd", "budget": "small", "size": 0}]
    assert comparisons(rows) == {("icd", "small", 0): "icd, small"}
    assert comparisons([*rows, {"data": "icd", "budget": "small", "size": 64}]) == {
        ("icd", "small", 0): "icd, small, all records", ("icd", "small", 64): "icd, small, 64 records"}
