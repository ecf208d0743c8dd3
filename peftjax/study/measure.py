"""What a study compares by: a metric in percent, or the loss on the test items in nats a token. More is better in either form.

    metric     the score of an item in [0, 1], shown in percent; differences in points
    loss       minus an item's negative log-likelihood a token; differences in nats
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Measure:
    """How scores are taken and shown.

    Attributes:
        factor: of a shown number.
        unit: of a difference.
        digits: behind the point.
    """

    factor: float
    unit: str
    digits: int

    def score(self, item: Mapping[str, Any], metric: str) -> float:
        """Of one item."""
        return -item["nll"] / item["tokens"] if self is LOSS else item[metric]

    def name(self, metric: str) -> str:
        """Of what is compared on a data set with this metric."""
        return "−loss" if self is LOSS else metric

    def label(self, metric: str) -> str:
        """Of an axis."""
        return "−loss (nats a token)" if self is LOSS else f"{metric.replace('_', ' ')} (%)"

    def value(self, score: float) -> str:
        """A score as text."""
        return f"{self.factor * score:.{self.digits}f}"

    def change(self, mean: float, ends: tuple[float, float] | None = None) -> str:
        """A difference as text, with its interval where there is one."""
        return f"{self.factor * mean:+.{self.digits}f}" + (f" {self.interval(ends)}" if ends is not None else "")

    def interval(self, ends: tuple[float, float]) -> str:
        """An interval of differences as text."""
        low, high = (f"{self.factor * end:+.{self.digits}f}" for end in ends)
        return f"[{low}, {high}]"


PERCENT = Measure(100.0, "points", 1)
LOSS = Measure(1.0, "nats", 3)


def measure_called(name: str) -> Measure:
    """That of a thing compared, by what `Measure.name` calls it."""
    return LOSS if name == LOSS.name("") else PERCENT


def measure_of(study: Mapping[str, Any]) -> Measure:
    """That of a study's plain config."""
    return LOSS if study.get("measure") == "loss" else PERCENT
