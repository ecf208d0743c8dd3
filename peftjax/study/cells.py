"""What a study is made of: treatments, cells, and the runs of a cell, with the folders that these are in.

    runs/<data>/<budget>/<records>/<method>/tune-100-lr0.001        a trial of a rate, on validation
                                            seed-3-lr0.001          a seed at the chosen rate, on test
"""

import dataclasses
import itertools
from typing import Any

from ml_collections import ConfigDict

from peftjax.peft.spec import from_data
from peftjax.study.config import run_on, slug
from peftjax.study.sizes import FIELDS
from peftjax.train.config import methods


@dataclasses.dataclass(frozen=True)
class Treatment:
    """A method at a budget, with what was found to meet it.

    Attributes:
        method, budget: their names.
        specifications: the methods as data, with their size.
        unit: what the budget is of.
        cost: in that unit; `deviation` from the budget as a share of it.
        parameters: numbers it trains.
        steps: of a run.
    """

    method: str
    budget: str
    specifications: tuple[dict, ...]
    unit: str
    cost: float
    deviation: float
    parameters: int
    steps: int

    def size(self) -> str:
        """`rank 7`."""
        given = [f"{field} {one[field]}" for one in self.specifications for field in FIELDS if one.get(field) is not None]
        return ", ".join(given) or "no size"


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """A method at a budget on a data set of so many training records (0: all)."""

    data: str
    budget: str
    size: int
    method: str

    @property
    def comparison(self) -> tuple[str, str, int]:
        """What cells that are compared with each other have in common."""
        return self.data, self.budget, self.size

    def folder(self, rate: float, seed: int, tuning: bool) -> str:
        """Of a run, below the study's."""
        place = (self.data, self.budget, str(self.size or "all"), self.method, f"{'tune' if tuning else 'seed'}-{seed}-lr{rate:g}")
        return "/".join(["runs", *map(slug, place)])


def cells(study: ConfigDict) -> list[Cell]:
    """All cells, the methods of a comparison together."""
    parts = (list(study.data), list(study.budgets), list(study.sizes), list(study.methods))
    return [Cell(data, budget, size, method) for data, budget, size, method in itertools.product(*parts)]


def run_config(study: ConfigDict, treatment: Treatment, cell: Cell, rate: float, seed: int, tuning: bool) -> Any:
    """The config of one run. A trial sees validation alone, and generates only where a metric decides."""
    config = run_on(study, cell.data)
    config.peft = methods(*(from_data(dict(one)) for one in treatment.specifications))
    if study.combine:
        for method in config.peft:
            method.name = slug(cell.data)  # adapters of several data sets are to stand in one tree
    config.data.rows, config.train.steps, config.train.seed = cell.size, treatment.steps, seed
    config.optimizer.learning_rate = rate
    if tuning:
        config.eval.at_end, config.eval.every = ("validation",), 0
        config.eval.generate = study.tuning.measure != "loss"
        if config.eval.generate:
            config.eval.metrics = (study.tuning.measure,)
        config.eval.general.name = ""
    else:
        config.eval.at_end, config.eval.every = ("test",), study.curve
    return config
