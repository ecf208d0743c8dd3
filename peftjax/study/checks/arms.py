"""What the runs of a check say of two arms: losses by seed, paired differences over seeds and items, and their verdict.

    d[seed, item] = (nll of a - nll of b) / mean tokens of an item        whose mean is the difference of the losses, nats a token

Items of one group (sentences of one template) are alike, so that groups, not items, are what intervals and tests count.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from peftjax.evals.statistics.crossed import Effect, effect
from peftjax.evals.statistics.differences import by_group
from peftjax.evals.statistics.equivalence import BETTER, WORSE, tost
from peftjax.evals.statistics.holm import holm
from peftjax.study.checks.finding import OPEN, TIE

Rows = Iterable[Mapping[str, Any]]
AtRate = tuple[str, float]  # an arm, and one of its rates


class Comparison(NamedTuple):
    """An arm against another: effect (nats a token, negative where it is better), p-values corrected over all comparisons, and a word."""

    effect: Effect
    p: float
    p_equivalent: float
    word: str


def of_arm(rows: Rows, name: str, rate: float) -> list[Mapping[str, Any]]:
    """The finished runs of an arm at a rate, by seed."""
    return sorted((row for row in rows if row["arm"] == name and row["rate"] == rate and not row["error"]), key=lambda row: row["seed"])


def losses(rows: Rows, name: str, rate: float, which: str = "test") -> np.ndarray:
    """Losses [S] of an arm at a rate."""
    return np.asarray([row[which] for row in of_arm(rows, name, rate)])


def differences(rows: Sequence[Mapping[str, Any]], a: AtRate, b: AtRate) -> np.ndarray:
    """d [S, U] of two arms, each at its rate, on the seeds that both have.

    Raises:
        ValueError: no seed in common, or other items.
    """
    ours, theirs = ({row["seed"]: row for row in of_arm(rows, *one)} for one in (a, b))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds or any(ours[seed]["ids"] != theirs[seed]["ids"] for seed in seeds):
        raise ValueError(f"{a[0]} and {b[0]} have no runs of the same seeds and items to compare")
    tokens = np.mean(ours[seeds[0]]["tokens"])
    return np.asarray([np.subtract(ours[seed]["nll"], theirs[seed]["nll"]) / tokens for seed in seeds])


def compare(rows: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[AtRate, AtRate]], region: float) -> list[Comparison]:
    """Each pair (a, b), corrected by Holm over all of them; `region` in nats a token is what counts as no difference."""
    effects = [effect(by_group(differences(rows, a, b), of_arm(rows, *a)[0]["groups"])) for a, b in pairs]
    p_values, equivalent = holm([one.p() for one in effects]), holm([tost(one, region) for one in effects])
    return [Comparison(one, p, q, word(one, p, q)) for one, p, q in zip(effects, p_values, equivalent, strict=True)]


def over_seeds(values: np.ndarray) -> tuple[float, float]:
    """95 % of Student's t over seeds [S]; infinite with one."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def word(one: Effect, p: float, p_equivalent: float, level: float = 0.05) -> str:
    """BETTER is a lower loss here: a verdict from a corrected test and a corrected test of equivalence."""
    if p_equivalent <= level:
        return TIE
    if p <= level:
        return BETTER if one.mean < 0 else WORSE
    return OPEN
