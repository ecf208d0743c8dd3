"""Optimisers by name, and their schedule."""

import pytest
from step_parts import build
from tiny import train_batch

from peftjax.train.config import default_config
from peftjax.train.optimiser import CORES, schedule


@pytest.mark.slow  # a step for each optimiser: twenty-five seconds
@pytest.mark.parametrize("name", CORES)
def test_every_optimiser_lowers_the_loss(name):
    rate = {"sgd": 0.5, "lion": 1e-3}.get(name, 1e-2)
    step, state, frozen = build(name=name, learning_rate=rate)
    batch, losses = train_batch(4, seed=0), []
    for _ in range(10):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert float(metrics["learning_rate"]) == pytest.approx(rate)


def test_unknown_optimiser_names_the_known_ones():
    with pytest.raises(ValueError, match="adamw"):
        build(name="adamx")


def test_decay_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="sgd has none"):
        build(name="sgd", weight_decay=0.1)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_schedule_warms_up_and_ends_where_it_should(name):
    options = default_config().optimizer
    options.update({"schedule": name, "learning_rate": 1.0, "warmup": 5, "final_fraction": 0.1})
    rate = schedule(options, 50)
    assert 0 < float(rate(0)) <= 0.2 + 1e-6
    assert float(rate(5)) == pytest.approx(1.0, abs=1e-6)
    assert float(rate(50)) == pytest.approx(1.0 if name == "constant" else 0.1, abs=1e-6)
