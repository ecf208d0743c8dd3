"""The picture of an answer names every candidate that was measured, whatever studies know."""

import told_advice as told

from peftjax.study.advice.decide import by_rules, decide
from peftjax.study.advice.evidence import nearest
from peftjax.study.advice.needs import Needs
from peftjax.study.advice.plot import figure_of, write_plot

NEEDS = Needs(merging="forbidden")


def advice(means: dict[str, float], **changes):
    known = told.candidates()
    remaining, _ = by_rules(known, NEEDS)
    return decide(NEEDS, known, told.costs(remaining), nearest(told.evidence(means, **changes), NEEDS, known, "f"))


def test_all_that_were_measured_are_in_the_legend():
    found = advice({"LoRA": -1.5, "Pfeiffer": -1.25}, metric="−loss")
    measured = [one for one in found.verdicts if one.cost is not None]
    figure = figure_of(found, measured)
    names = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert names == [f"{n}  {one.candidate.name} ({one.state})" for n, one in enumerate(measured, 1)] and len(names) == 4
    costs, quality = figure.axes
    assert quality.get_ylabel() == "−loss (nats a token), 95 % interval" and costs.get_ylabel() == "MB"
    low, high = quality.get_ylim()
    assert -1.6 < low < -1.5 < -1.25 < high < -1.1  # in nats, not in percent


def test_without_evidence_there_is_a_panel_of_costs_alone(tmp_path):
    found = advice({})
    assert len(figure_of(found, [one for one in found.verdicts if one.cost is not None]).axes) == 1
    assert write_plot(found, tmp_path / "advice.png").read_bytes().startswith(b"\x89PNG")
