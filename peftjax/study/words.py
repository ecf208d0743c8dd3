"""What an analysis says, in sentences."""

import itertools

from peftjax.evals.statistics.equivalence import BETTER, EQUIVALENT, OPEN, WORSE
from peftjax.study.compare import Analysis, Comparison

SAID = {
    BETTER: "{a} is better than {b}", WORSE: "{b} is better than {a}",
    EQUIVALENT: "no difference between {a} and {b} (shown to be within ±{region})",
    OPEN: "{a} and {b} are not told apart (neither a difference nor its absence, within ±{region}, was shown)",
}


def counted(number: int, noun: str) -> str:
    """`1 budget`, `2 budgets`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def place(comparison: Comparison, sizes: bool = False) -> str:
    """`icd at small`, with the number of training records where there are several sizes."""
    data, budget, size = comparison
    return f"{data} at {budget}" + (f" with {size or 'all'} records" if sizes else "")


def answers(analysis: Analysis, region: float) -> list[str]:
    """A sentence for each pair of methods and each thing that is said of it, with where."""
    measure = analysis.measure
    sizes = len({pair.comparison[2] for pair in analysis.pairs}) > 1
    found = []
    for a, b in dict.fromkeys((pair.a, pair.b) for pair in analysis.pairs):
        own = sorted((pair for pair in analysis.pairs if (pair.a, pair.b) == (a, b)), key=lambda pair: list(SAID).index(pair.verdict))
        for verdict, group in itertools.groupby(own, key=lambda pair: pair.verdict):
            where = "; ".join(
                f"{place(pair.comparison, sizes)} ({a} − {b}: {measure.change(pair.effect.mean, pair.interval)} {measure.unit})"
                for pair in group
            )
            within = f"{measure.factor * region:g} {measure.unit}"
            found.append(f"**{SAID[verdict].format(a=a, b=b, region=within)}**: {where}.")
    return found


def ranking(analysis: Analysis) -> str:
    """Over all comparisons together."""
    ranks = analysis.ranking
    if ranks is None:
        return "No comparison is finished and fair yet, so nothing is ranked."
    order = sorted(zip(ranks.ranks, ranks.methods, strict=True))
    listed = ", ".join(f"{method} {rank:.2f}" for rank, method in order)
    friedman = "" if ranks.p is None else f" (Friedman's test of all alike: p = {ranks.p:.3g})"
    groups = [group for group in ranks.groups if len(group) > 1]
    if len(groups) == 1 and len(groups[0]) == len(ranks.methods):
        told = "no two methods can be told apart by their ranks"
    elif groups:
        told = "by their ranks these cannot be told apart: " + "; ".join(" and ".join(group) for group in groups)
    else:
        told = "all differ by their ranks"
    blocks, critical = counted(ranks.blocks, "comparison"), f"with a critical difference of {ranks.critical:.2f}"
    return f"Mean ranks over {blocks}: {listed}{friedman}; {critical}, {told}."
