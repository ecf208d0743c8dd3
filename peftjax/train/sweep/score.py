"""How good each point of a sweep is: its last evaluation on validation rows. The test set is left for what comes after the choice."""

import dataclasses
import json
import math
from pathlib import Path

from peftjax.evals.metrics import METRICS
from peftjax.hints import did_you_mean
from peftjax.train.ending import STOPPED, read_outcome
from peftjax.train.points import Point
from peftjax.train.sweep.folder import planned

LOWER = ("loss", "general_loss", "forgetting")  # of which less is better; metrics are shares, of which more is


@dataclasses.dataclass(frozen=True)
class Score:
    """One point.

    Attributes:
        point, folder: of the run.
        status: as in `peftjax.train.ending`.
        value: of the metric; None where it was not measured.
        low, high: 95 % interval; None of a loss.
        step: at which it was measured.
        error: of a failed one.
    """

    point: Point
    folder: Path
    status: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    step: int | None = None
    error: str | None = None


def require_metric(metric: str) -> None:
    """Refuses what no evaluation has."""
    known = (*LOWER, *METRICS)
    if metric not in known:
        raise ValueError(f"no metric is called {metric!r}{did_you_mean(metric, known)}; points are compared by {', '.join(known)}")


def scores(folder: str | Path, metric: str = "loss") -> list[Score]:
    """All points of a sweep: the finished ones best first, then those stopped early, then the rest; each kind in the order of its values.

    Raises:
        ValueError: no such metric.
    """
    require_metric(metric)
    sign, order = (1 if metric in LOWER else -1), ("done", "stopped", "unfinished", "failed")
    found = [score(point, run, metric) for point, run in planned(folder)]
    return sorted(found, key=lambda one: (order.index(one.status), math.inf if one.value is None else sign * one.value))


def score(point: Point, folder: Path, metric: str) -> Score:
    """One of them."""
    outcome = read_outcome(folder)
    last = last_validation(folder)
    made = Score(point, folder, outcome.status, error=outcome.error)
    if outcome.status == "stopped" and metric == "loss":  # it was compared by this, which need not be an evaluation
        stopped = json.loads((folder / STOPPED).read_text())
        return dataclasses.replace(made, value=stopped["validation_loss"], step=stopped["step"])
    if last is None:
        return made
    if metric in METRICS:
        measured = last["metrics"].get(metric)
        return made if measured is None else dataclasses.replace(
            made, value=measured["mean"], low=measured["low"], high=measured["high"], step=last["step"])
    value = last.get("validation_loss" if metric == "loss" else metric)
    return dataclasses.replace(made, value=value, step=last["step"])


def last_validation(folder: Path) -> dict | None:
    """The run's last evaluation on validation rows after training began; None where there is none."""
    for file in sorted((folder / "evaluations").glob("[0-9]*.json"), reverse=True):
        found = json.loads(file.read_text())
        if found["split"] == "validation" and found["step"] > 0:
            return found
    return None
