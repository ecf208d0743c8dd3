"""Effects between methods, from a study's stored items: each pair on the same seeds and items, corrected for how many pairs there are.

    analysis = analyse(tables)
    analysis.pairs[0]       LoRA - Pfeiffer, at "small" on "icd": effect, intervals, p, corrected p, TOST, verdict

Items are drawn by group (rows of one template, questions on one product), see `peftjax.evals.statistics.differences`; seeds and groups are
both samples (`crossed`). The family that Holm's correction is over is all pairs of the study; so is that of the equivalence tests.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from peftjax.evals.statistics import bootstrap
from peftjax.evals.statistics.crossed import Effect, effect
from peftjax.evals.statistics.differences import by_group, paired
from peftjax.evals.statistics.equivalence import tost, verdict
from peftjax.evals.statistics.groups import indistinguishable
from peftjax.evals.statistics.holm import holm
from peftjax.evals.statistics.ranks import critical_difference, friedman, mean_ranks
from peftjax.evals.statistics.sign_flip import sign_flip
from peftjax.study.fair import unfair
from peftjax.study.measure import PERCENT, Measure, measure_of
from peftjax.study.tables import Tables

Comparison = tuple[str, str, int]  # data, budget, size


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of one cell: seeds, item ids and their groups, scores [S, N] (more is better), the metric [S, N] (None where no answers were asked),
    negative log-likelihoods [S, N] and tokens [N]."""

    seeds: tuple[int, ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    scores: np.ndarray
    metric: np.ndarray | None
    nll: np.ndarray
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Standing:
    """A cell: the mean of its scores over seeds and items with its interval, the mean of its metric, the mean loss (nats a token),
    forgetting (nats a token, mean over seeds), and its rate. None is what was not measured."""

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    metric: float | None
    loss: float
    forgetting: float | None
    rate: float


@dataclasses.dataclass(frozen=True)
class Pair:
    """a - b in one comparison.

    Attributes:
        effect: of the metric; `interval` at the study's level.
        bootstrap: interval by resampling seeds and groups, beside it.
        p, p_corrected: of no difference, from the crossed effects; corrected by Holm over the study.
        p_signs: of the sign-flip test over groups, which holds for these seeds.
        p_equivalent: of a difference beyond the region, corrected likewise.
        verdict: in words, of a.
    """

    comparison: Comparison
    a: str
    b: str
    effect: Effect
    interval: tuple[float, float]
    bootstrap: tuple[float, float]
    p: float
    p_corrected: float
    p_signs: float
    p_equivalent: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Methods over all fair comparisons as blocks: mean ranks (1 is best), Friedman's p (None for two methods or one block), Nemenyi's
    difference, and the groups that it cannot tell apart."""

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    blocks: int
    p: float | None
    critical: float
    groups: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """All that a report says.

    Attributes:
        measure: what is compared.
        metrics: data -> name of the metric that counts, "−loss" where that is compared.
        standings: (data, budget, size, method) -> its standing, of fair comparisons.
        pairs: of fair comparisons.
        groups: comparison -> methods that no test tells apart.
        refused: comparison -> why its methods are not compared.
        ranking: None where there is no fair comparison.
        together: (data, budget, size, method) -> effect of averaging the adapters of all data sets, against the data set's own adapter.
        domains: (data, domain) -> budget, method -> mean of the metric; the domain of an item is its group up to the first "/".
    """

    measure: Measure
    metrics: dict[str, str]
    standings: dict[tuple[str, str, int, str], Standing]
    pairs: list[Pair]
    groups: dict[Comparison, list[tuple[str, ...]]]
    refused: dict[Comparison, list[str]]
    ranking: Ranking | None
    together: dict[tuple[str, str, int, str], Effect]
    domains: dict[tuple[str, str], dict[tuple[str, str, int], float]]


def analyse(tables: Tables) -> Analysis:
    """Everything from the tables alone."""
    study = tables.plan["study"]
    methods, level, region, measure = list(study["methods"]), study["level"], study["region"], measure_of(study)
    metrics = {run["data"]: run["metric"] for run in tables.runs if not run["error"]}
    standings, refused, raw, domains, together = {}, {}, [], {}, {}
    for comparison in comparisons(study):
        runs, trials, items = (_of(comparison, rows) for rows in (tables.runs, tables.trials, tables.items))
        averaged, items = [item for item in items if item["combined"]], [item for item in items if not item["combined"]]
        if reasons := unfair(tables.plan, trials, runs, items, methods):
            refused[comparison] = reasons
            continue
        metric = metrics[comparison[0]]
        found = {method: scores_of([item for item in items if item["method"] == method], metric, measure) for method in methods}
        for method, scores in found.items():
            standings[*comparison, method] = _standing(scores, [run for run in runs if run["method"] == method], 1 - level, measure)
            if beside := [item for item in averaged if item["method"] == method]:
                change = paired(scores_of(beside, metric, measure).scores, scores.scores)
                together[*comparison, method] = effect(by_group(change, scores.groups))
            for domain, mean in _domains(scores).items():
                domains.setdefault((comparison[0], domain), {})[*comparison[1:], method] = mean
        for a, b in itertools.combinations(methods, 2):
            raw.append((comparison, a, b, by_group(paired(found[a].scores, found[b].scores), found[a].groups)))
    pairs = _pairs(raw, level, region)
    groups = {}
    for comparison in dict.fromkeys(pair.comparison for pair in pairs):
        here = [pair for pair in pairs if pair.comparison == comparison]
        groups[comparison] = indistinguishable(methods, [(pair.a, pair.b) for pair in here if pair.p_corrected <= level])
    named = {data: measure.name(metric) for data, metric in metrics.items()}
    return Analysis(measure, named, standings, pairs, groups, refused, _ranking(standings, methods, level), together, domains)


def comparisons(study: dict[str, Any]) -> list[Comparison]:
    """All of a study, in its order."""
    return list(itertools.product(study["data"], study["budgets"], study["sizes"]))


def scores_of(items: Sequence[dict[str, Any]], metric: str, measure: Measure = PERCENT) -> Scores:
    """The items of one cell as arrays, by seed and id. Every seed must have the same items (`unfair` sees to it)."""
    seeds = tuple(sorted({item["seed"] for item in items}))
    ids = tuple(sorted({item["id"] for item in items}))
    place = {(item["seed"], item["id"]): item for item in items}
    grid = [[place[seed, name] for name in ids] for seed in seeds]

    def column(of):
        return np.array([[of(item) for item in row] for row in grid], np.float64)

    groups = tuple(item["group"] for item in grid[0])
    if len(set(groups)) == 1:  # nothing is known of other groups: what is found holds for this one
        groups = ids
    nll, tokens = column(lambda item: item["nll"]), column(lambda item: item["tokens"])[0]
    answered = all(metric in item for item in items)
    return Scores(
        seeds, ids, groups, column(lambda item: measure.score(item, metric)), column(lambda item: item[metric]) if answered else None, nll,
        tokens,
    )


def _of(comparison: Comparison, rows: Sequence[dict]) -> list[dict]:
    return [row for row in rows if (row["data"], row["budget"], row["size"]) == comparison]


def _standing(scores: Scores, runs: Sequence[dict], confidence: float, measure: Measure) -> Standing:
    found = effect(by_group(scores.scores, scores.groups))
    low, high = found.interval(confidence)
    forgotten = [run["forgetting"] for run in runs if run["forgetting"] is not None]
    loss = float(scores.nll.sum() / (scores.tokens.sum() * len(scores.seeds)))
    if measure is PERCENT:
        low, high = max(low, 0.0), min(high, 1.0)
    by_seed = tuple(scores.scores.mean(axis=1).tolist())
    return Standing(
        found.mean, low, high, by_seed, None if scores.metric is None else float(scores.metric.mean()), loss,
        float(np.mean(forgotten)) if forgotten else None, runs[0]["rate"],
    )


def _domains(scores: Scores) -> dict[str, float]:
    names = np.array([group.split("/")[0] for group in scores.groups])
    return {str(name): float(scores.scores[:, names == name].mean()) for name in dict.fromkeys(names)}


def _pairs(raw: Sequence[tuple[Comparison, str, str, np.ndarray]], level: float, region: float) -> list[Pair]:
    effects = [effect(differences) for *_, differences in raw]
    p = [found.p() for found in effects]
    corrected, equivalent = holm(p), holm([tost(found, region) for found in effects])
    return [
        Pair(
            comparison, a, b, found, found.interval(1 - level), bootstrap.interval(differences, 1 - level), p[n], corrected[n],
            sign_flip(differences), equivalent[n], verdict(found, corrected[n], equivalent[n], level),
        )
        for n, ((comparison, a, b, differences), found) in enumerate(zip(raw, effects, strict=True))
    ]


def _ranking(standings: dict, methods: list[str], level: float) -> Ranking | None:
    blocks = list(dict.fromkeys(key[:3] for key in standings))
    if not blocks or len(methods) < 2:
        return None
    scores = [[standings[*block, method].mean for method in methods] for block in blocks]
    ranks, critical = mean_ranks(scores), critical_difference(len(methods), len(blocks), level)
    apart = [(a, b) for (i, a), (j, b) in itertools.combinations(enumerate(methods), 2) if abs(ranks[i] - ranks[j]) > critical]
    p = friedman(scores) if len(methods) > 2 and len(blocks) > 1 else None
    return Ranking(tuple(methods), tuple(ranks.tolist()), len(blocks), p, critical, tuple(indistinguishable(methods, apart)))

