"""The treatments of a study: each method in the size, or for the steps, that meets each budget.

    treatments/39k/LoRA.json        {"asked": what decides, "found": the treatment}

They are kept in the study's folder: what is timed comes out otherwise the next time, and a study that goes on goes on with what it had.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.files import locked, replacing
from peftjax.interop.base import Base
from peftjax.peft.spec import from_data
from peftjax.study.cells import Treatment
from peftjax.study.config import slug, unit_of
from peftjax.study.costs import forward_s
from peftjax.study.sizes import fit, parameters, with_size
from peftjax.train.bench import begin

TURNS = 9  # timed steps, where training time is what is equal
FOLDER = "treatments"


def treatments_of(
    study: ConfigDict, base: Base, workdir: str | Path, say: Callable[[str], None] = print
) -> dict[tuple[str, str], Treatment]:
    """(method, budget) -> treatment, as the study's folder has it; one that is not there, or of other methods, budget or run, is found.

    Raises:
        ValueError: a method whose nearest size is farther from the budget than `study.deviation`, with both.
    """
    folder, found = Path(workdir) / FOLDER, {}
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        for budget, amount in study.budgets.items():
            unit, value = unit_of(amount)
            for method, specifications in study.methods.items():
                file, asked = folder / slug(budget) / f"{slug(method)}.json", _asked(study, base, amount, specifications)
                there = json.loads(file.read_text()) if file.exists() else {}
                if there.get("asked") != asked:
                    made = _treatment(study, base, method, budget, unit, value, specifications)
                    there = {"asked": asked, "found": dataclasses.asdict(made)}
                    with replacing(file) as partial:
                        partial.write_text(json.dumps(there, indent=1))
                parts = there["found"] | {"specifications": tuple(there["found"]["specifications"])}
                found[method, budget] = one = Treatment(**parts)
                off = f"{100 * one.deviation:+.1f} %"
                say(f"{method} at {budget}: {one.size()}, {one.cost:,.6g} of {value:,.6g} {unit} ({off}), {one.steps} steps")
    return found


def _asked(study: ConfigDict, base: Base, amount: Any, specifications: Sequence[ConfigDict]) -> dict[str, Any]:
    """What decides a treatment, as JSON-able data."""
    run = study.run
    asked = {
        "base": base.fingerprint, "budget": dict(amount), "deviation": study.deviation,
        "methods": [one.to_dict() for one in specifications], "steps": run.train.steps, "batch": run.train.batch_size,
        "length": run.data.length, "segments": run.model.segments,
    }
    return json.loads(json.dumps(asked))


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
