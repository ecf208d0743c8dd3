"""The treatments of a study: each method in the size, or for the steps, that meets each budget."""

import statistics
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from peftjax.interop.base import Base
from peftjax.peft.spec import from_data
from peftjax.study.cells import Treatment
from peftjax.study.config import unit_of
from peftjax.study.costs import forward_s
from peftjax.study.sizes import fit, parameters, with_size
from peftjax.train.bench import begin

TURNS = 9  # timed steps, where training time is what is equal


def treatments_of(study: ConfigDict, base: Base, say: Callable[[str], None] = print) -> dict[tuple[str, str], Treatment]:
    """(method, budget) -> treatment.

    Raises:
        ValueError: a method whose nearest size is farther from the budget than `study.deviation`, with both.
    """
    found = {}
    for budget, amount in study.budgets.items():
        unit, value = unit_of(amount)
        for method, specifications in study.methods.items():
            found[method, budget] = one = _treatment(study, base, method, budget, unit, value, specifications)
            off = f"{100 * one.deviation:+.1f} %"
            say(f"{method} at {budget}: {one.size()}, {one.cost:,.6g} of {value:,.6g} {unit} ({off}), {one.steps} steps")
    return found


def _treatment(
    study: ConfigDict, base: Base, method: str, budget: str, unit: str, value: float, specifications: Sequence[ConfigDict]
) -> Treatment:
    steps = study.run.train.steps
    if unit == "time":
        step_s = step_seconds(study, base, specifications)
        steps = max(1, round(value / step_s))
        chosen, cost, deviation = specifications, steps * step_s, steps * step_s / value - 1
    else:
        fitted = fit(lambda size: cost_of(study, base, unit, with_size(specifications, size)), value)
        chosen, cost, deviation = with_size(specifications, fitted.size), fitted.cost, fitted.deviation
    if abs(deviation) > study.deviation:
        raise ValueError(
            f"{method} cannot meet the budget {budget!r}: the nearest is {cost:,.6g} {unit} where {value:,.6g} were asked, "
            f"{100 * deviation:+.1f} %, and study.deviation allows {100 * study.deviation:g} %; change the budget, or allow more"
        )
    plain = tuple(dict(one.to_dict()) for one in chosen)
    count = parameters(base, chosen, study.run.model.segments)
    return Treatment(method, budget, plain, unit, float(cost), float(deviation), count, steps)


def cost_of(study: ConfigDict, base: Base, unit: str, specifications: Sequence[ConfigDict]) -> float:
    """What methods cost, in numbers, bytes or seconds."""
    if unit == "parameters":
        return parameters(base, specifications, study.run.model.segments)
    if unit == "memory":
        return begin(base, _objects(specifications), study.run.train.batch_size, study.run.data.length)[0].temporary_bytes
    return forward_s(base, _objects(specifications))


def step_seconds(study: ConfigDict, base: Base, specifications: Sequence[ConfigDict]) -> float:
    """Median seconds of a training step on dense rows of the run's batch and length."""
    _, step = begin(base, _objects(specifications), study.run.train.batch_size, study.run.data.length)
    return statistics.median(step() for _ in range(TURNS))


def _objects(specifications: Sequence[ConfigDict]) -> list:
    return [from_data(one.to_dict()) for one in specifications]
