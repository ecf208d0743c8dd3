"""The configuration of a study: every field there is.

    def get_config():
        study = default_study()
        study.methods = {"LoRA": methods(lora()), "Pfeiffer": methods(pfeiffer())}
        study.budgets = {"small": {"parameters": 20_000}}
        study.data = {"icd": {"data": {"name": "icd_chapter"}, "eval": {"metrics": ("accuracy",)}}}
        return study

A treatment is a method at a budget; a cell is a treatment on a data set of a size; a comparison is all methods in cells alike.
"""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from peftjax.evals.metrics import METRICS
from peftjax.hints import did_you_mean
from peftjax.study.sizes import sized
from peftjax.train.config import default_config, flatten_data, plain
from peftjax.train.points import with_point

UNITS = ("parameters", "memory", "latency", "time")


def default_study() -> ConfigDict:
    """All fields."""
    run = default_config()
    run.eval.before = False
    run.log.tensorboard = run.log.pictures = False
    run.checkpoint.keep_newest, run.checkpoint.every, run.checkpoint.best = 1, 1_000_000, False
    return ConfigDict({
        "run": run,  # what all runs share: base, steps, batch, schedule, general text
        "methods": {},  # name -> methods(...); the one with a rank or a size has it set by the budget
        # name -> {unit: number}. The unit is what is equal between methods: "parameters" that are trained; "memory", bytes that a compiled
        # step holds beside base and data; "latency", seconds of one unmerged forward pass; or "time", seconds of training, for which
        # methods keep the size they have and take as many steps as they can.
        "budgets": {},
        "data": {},  # name -> fields of a run that differ: {"data": {"name": ...}, "eval": {"metrics": ("accuracy",)}}; metrics[0] counts
        "sizes": (0,),  # training records; 0 is all of them
        "seeds": (0, 1, 2, 3, 4),  # of data order and initial values, the same for all methods; measured on the test set
        "curve": 0,  # steps between two evaluations on validation; 0 draws no learning curves
        # Learning rates centre * factor^k on validation: `rates` of them at first; `more` beyond an edge where the best one lies there,
        # for all methods of a comparison, up to `rounds` times.
        "tuning": {"centre": 1e-3, "factor": 10**0.5, "rates": 5, "more": 2, "rounds": 3, "seeds": (100,), "measure": "loss"},
        "measure": "metric",  # what is compared: the data set's first metric, or "loss"
        "region": 0.015,  # differences within it do not matter (0.015 is 1.5 points of a metric, or 0.015 nats): of equivalence tests
        "level": 0.05,  # of tests and intervals
        "deviation": 0.05,  # of a cost from its budget, as a share; more is refused
        # Of what is timed: turns, and seconds after which no further ones begin; 0 turns time nothing.
        "timing": {"rounds": 30, "budget_s": 20.0},
        "combine": False,  # whether adapters of all data sets are also averaged, and measured on each
    })


def check(study: ConfigDict) -> None:
    """Refuses fields that do not exist and values that cannot be.

    Raises:
        ValueError: names the field, what it is and what it may be.
    """
    known = default_study()
    for name in study:
        if name not in known:
            raise ValueError(f"study.{name} is not a field{did_you_mean(name, known)}")
    for section in ("tuning", "timing"):
        for name in study[section]:
            if name not in known[section]:
                raise ValueError(f"study.{section}.{name} is not a field{did_you_mean(name, known[section])}")
    for field, least in {"methods": 1, "budgets": 1, "data": 1, "sizes": 1, "seeds": 1}.items():
        if len(study[field]) < least:
            raise ValueError(f"study.{field} is empty")
    for field in ("methods", "budgets", "data"):
        if len({slug(name) for name in study[field]}) < len(study[field]):
            raise ValueError(f"study.{field} has names whose folders would be the same: {', '.join(study[field])}")
    for field in ("sizes", "seeds"):
        if len(set(study[field])) < len(study[field]):
            raise ValueError(f"study.{field} names one twice: {tuple(study[field])}")
    for name, budget in study.budgets.items():
        unit, value = unit_of(budget)
        if unit not in UNITS or not value > 0:
            raise ValueError(f"study.budgets.{name} is {dict(budget)}; it must be one of {', '.join(UNITS)}{did_you_mean(unit, UNITS)}, "
                             "and above 0")
        if unit != "time":
            for method, specifications in study.methods.items():
                sized(specifications, method)
    tuning = study.tuning
    if tuning.rates < 3 or tuning.more < 1 or not tuning.factor > 1 or not tuning.centre > 0 or not tuning.seeds:
        raise ValueError(f"study.tuning is {tuning.to_dict()}; an interior optimum needs three rates or more, a factor above 1, a centre "
                         "above 0, a seed, and one rate more a round")
    if shared := set(tuning.seeds) & set(study.seeds):
        raise ValueError(f"seeds {sorted(shared)} are in study.tuning.seeds and in study.seeds: a rate must be measured on other "
                         "seeds than it is chosen on")
    if tuning.measure != "loss" and tuning.measure not in METRICS:
        raise ValueError(f"study.tuning.measure is {tuning.measure!r}{did_you_mean(tuning.measure, METRICS)}; it may be loss, or a metric")
    if study.measure not in ("metric", "loss"):
        raise ValueError(f"study.measure is {study.measure!r}; it may be metric or loss")
    if not 0 < study.level < 1 or not study.region > 0:
        raise ValueError(f"study.level is {study.level} and study.region {study.region}; both must be above 0, the level below 1")
    for name in study.data:
        run_on(study, name)


def unit_of(budget: Mapping[str, float]) -> tuple[str, float]:
    """("parameters", 20000) of {"parameters": 20000}.

    Raises:
        ValueError: none, or several.
    """
    if len(budget) != 1:
        raise ValueError(f"a budget is one unit and its number, as {{'parameters': 20000}}; found {dict(budget)}")
    return next(iter(budget.items()))


def run_on(study: ConfigDict, data: str) -> ConfigDict:
    """The run's config on a data set, yet without methods.

    Raises:
        ValueError: a field that a run has not.
    """
    return with_point(study.run, flatten_data(study.data[data].to_dict()))


def slug(name: str) -> str:
    """A name that is good for a folder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-") or "unnamed"


def plain_study(study: ConfigDict) -> dict[str, Any]:
    """The study as JSON-able plain data."""
    data = study.to_dict()
    data["run"] = plain(study.run)
    data["methods"] = {name: [m.to_dict() if isinstance(m, ConfigDict) else m for m in study.methods[name]] for name in study.methods}
    return data
