"""The search of a learning rate: trials on a grid that grows until the best one is not at its edge.

    rate of step k = centre * factor^k        k = -2, -1, 0, 1, 2 at first

A trial that diverged scores infinity, so a best rate beside it is not at an edge. Where one method of a comparison needs more rates, all
of them get as many, each on the side where its own scores say that better ones may be: the trials stay equal in number.
"""

import math
from collections.abc import Mapping


def first(count: int) -> list[int]:
    """Steps of the first trials, around 0."""
    return [k - (count - 1) // 2 for k in range(count)]


def rate(centre: float, factor: float, k: int) -> float:
    """The rate of a step, to four digits, so that it can be read and typed."""
    return float(f"{centre * factor**k:.4g}")


def best(scores: Mapping[int, float]) -> int | None:
    """The step with the lowest score, of equal ones the smallest; None where all diverged."""
    finite = {k: score for k, score in scores.items() if math.isfinite(score)}
    return min(finite, key=lambda k: (finite[k], k)) if finite else None


def edge(scores: Mapping[int, float]) -> int:
    """-1 or 1 where the best step is the lowest or highest of those tried, 0 where it lies between; -1 where all diverged."""
    at = best(scores)
    if at is None or at == min(scores):
        return -1
    return int(at == max(scores))


def further(scores: Mapping[int, float], count: int) -> list[int]:
    """The next `count` steps: beyond the edge at which the best lies, else beyond the end whose score is the better one."""
    side = edge(scores) or (-1 if scores[min(scores)] <= scores[max(scores)] else 1)
    end = min(scores) if side < 0 else max(scores)
    return [end + side * (number + 1) for number in range(count)]
