from peftjax.study.measure import LOSS, PERCENT, measure_called, measure_of


def test_a_metric_is_shown_in_percent_and_a_loss_in_nats():
    item = {"nll": 3.0, "tokens": 4, "accuracy": 0.5}
    assert PERCENT.score(item, "accuracy") == 0.5 and PERCENT.value(0.5) == "50.0"
    assert LOSS.score(item, "accuracy") == -0.75 and LOSS.value(-0.75) == "-0.750"  # more is better
    assert PERCENT.change(0.0123, (-0.01, 0.03)) == "+1.2 [-1.0, +3.0]" and LOSS.change(-0.05) == "-0.050"
    assert PERCENT.label("exact_match") == "exact match (%)" and LOSS.label("exact_match") == "−loss (nats a token)"


def test_a_study_says_what_it_compares():
    assert measure_called(LOSS.name("accuracy")) is LOSS and measure_called(PERCENT.name("accuracy")) is PERCENT
    assert measure_of({"measure": "loss"}) is LOSS and measure_of({"measure": "metric"}) is PERCENT and measure_of({}) is PERCENT
