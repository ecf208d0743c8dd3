"""Whether methods may be compared: as many trials, on the same seeds; the same test seeds, items, data, base and settings.

`unfair` gives the reasons why not, in words. Nothing is compared where there is one.
"""

from collections.abc import Sequence
from typing import Any

from peftjax.study.measure import LOSS, measure_of
from peftjax.study.rates import edge


def unfair(plan: dict[str, Any], trials: Sequence[dict], runs: Sequence[dict], items: Sequence[dict], methods: Sequence[str]) -> list[str]:
    """Reasons against a comparison.

    Args:
        plan: of the tables.
        trials, runs, items: those of one comparison, of all its methods.
        methods: that are compared.
    """
    study, reasons = plan["study"], []
    of = {method: [run for run in runs if run["method"] == method] for method in methods}
    for method, found in of.items():
        for run in found:
            if run["error"]:
                reasons.append(f"seed {run['seed']} of {method} failed: {run['error']}")
        absent = [seed for seed in study["seeds"] if seed not in {run["seed"] for run in found}]
        if absent:
            reasons.append(f"{method} has not run seed {', '.join(map(str, absent))} yet")
    if reasons:
        return reasons
    tried = {method: [trial for trial in trials if trial["method"] == method] for method in methods}
    reasons += _differ("trials", {method: len(found) for method, found in tried.items()})
    reasons += _differ("seeds of tuning", {method: sorted({trial["seed"] for trial in found}) for method, found in tried.items()})
    for method, found in tried.items():
        if reason := untuned(found):
            reasons.append(f"{method}: {reason}")
    for what, name in (("seed", "seeds"), ("records", "records of data"), ("base", "bases")):
        reasons += _differ(name, {method: sorted({run[what] for run in of[method]}) for method in methods})
    by_time = next(iter(study["budgets"][runs[0]["budget"]])) == "time"
    kept = {
        method: sorted({_words({k: v for k, v in run["settings"].items() if k != "train.seed" and not (by_time and k == "train.steps")})
                        for run in of[method]}) for method in methods
    }
    reasons += _differ("settings", kept)
    tuning = {method: sorted({_words({k: v for k, v in trial["settings"].items() if not (by_time and k == "train.steps")})
                              for trial in tried[method]}) for method in methods}
    reasons += _differ("settings of tuning", tuning)
    seen = {}
    for item in items:
        seen.setdefault(item["method"], set()).add((item["seed"], item["id"]))
    reasons += _differ("test items", {method: sorted(seen.get(method, ())) for method in methods})
    if measure_of(study) is not LOSS:
        reasons += _at_a_limit(runs[0]["metric"], items)
    return reasons


def _at_a_limit(metric: str, items: Sequence[dict]) -> list[str]:
    """A reason where all items of all methods have one score, 0 or 1: methods that differ would all have it too, and equal scores would be
    told as no difference."""
    found = {item.get(metric) for item in items}
    if len(found) != 1 or not found & {0.0, 1.0}:
        return []
    which = "floor" if 0.0 in found else "ceiling"
    return [f"{metric.replace('_', ' ')} is at its {which}, {100 * found.pop():g} % on every item of all methods, and tells none from "
            "another; compare by study.measure = 'loss'"]


def untuned(trials: Sequence[dict]) -> str | None:
    """Why the rates of a cell are not tuned; None where the best one has a worse one on either side."""
    if not trials:
        return "no learning rate was tried"
    scores = mean_scores(trials)
    rates = {trial["k"]: trial["rate"] for trial in trials}
    side = edge(scores)
    if side:
        end = min(scores) if side < 0 else max(scores)
        return f"the best learning rate, {rates[end]:g}, is the {'lowest' if side < 0 else 'highest'} of {len(scores)} tried"
    return None


def mean_scores(trials: Sequence[dict]) -> dict[int, float]:
    """Step of the grid -> mean score over the seeds of tuning."""
    by: dict[int, list[float]] = {}
    for trial in trials:
        by.setdefault(trial["k"], []).append(trial["score"])
    return {k: sum(scores) / len(scores) for k, scores in by.items()}


def _differ(what: str, values: dict[str, Any]) -> list[str]:
    """One reason where not all are the same, with the first that differs."""
    first, *others = values
    for other in others:
        if values[other] != values[first]:
            ours, theirs = _short(values[first], values[other]), _short(values[other], values[first])
            return [f"{what} differ: {first} has {ours}, {other} has {theirs}"]
    return []


def _short(value: Any, other: Any) -> str:
    """The value, or of lists how many there are and what the other has not."""
    if not isinstance(value, list):
        return str(value)
    own = [one for one in value if one not in other]
    return f"{len(value)}" + (f" (alone: {', '.join(map(str, own[:3]))}{', ...' if len(own) > 3 else ''})" if own else "")


def _words(settings: dict[str, Any]) -> str:
    return "; ".join(f"{name}={value}" for name, value in sorted(settings.items()))
