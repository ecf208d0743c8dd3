"""Paired bootstrap over seeds and units: both are drawn anew, with replacement, and the mean difference is taken again.

    mean*[k] = sum_su a[k, s] d[s, u] b[k, u]        a, b: counts of each seed and each unit in draw k, over the numbers drawn

Rows and columns are drawn independently, as in the pigeonhole bootstrap (A. B. Owen, 2007). Of n, n - 1 are drawn, which takes away the
narrowness that n draws have for small n (T. Hesterberg, 2015, section 4.3). Its quantiles stay those of few seeds: with three, prefer
`peftjax.evals.statistics.crossed`.
"""

from typing import Any

import numpy as np

from peftjax.evals.statistics.differences import require

BLOCK = 1000  # draws held at a time


def draws(differences: Any, count: int = 10_000, seed: int = 0) -> np.ndarray:
    """Bootstrapped means [count] of differences [S, U].

    Raises:
        ValueError: as `require`, or fewer than 100 draws.
    """
    d = require(differences)
    if count < 100:
        raise ValueError(f"a bootstrap interval needs at least 100 draws; asked for {count}")
    rng = np.random.default_rng(seed)
    blocks = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
    return np.concatenate([((_shares(rng, n, len(d)) @ d) * _shares(rng, n, d.shape[1])).sum(axis=1) for n in blocks])


def interval(differences: Any, confidence: float = 0.95, count: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """(low, high): percentiles of `draws`."""
    low, high = np.quantile(draws(differences, count, seed), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _shares(rng: np.random.Generator, count: int, among: int) -> np.ndarray:
    """How often each of `among` is drawn, over the number drawn: [count, among]."""
    drawn = max(among - 1, 1)
    return rng.multinomial(drawn, np.full(among, 1 / among), size=count) / drawn
