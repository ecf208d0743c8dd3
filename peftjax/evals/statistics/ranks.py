"""Several methods over several blocks (a data set at a budget): ranks, and how far apart two mean ranks must be.

    Friedman's test       do the methods' mean ranks differ at all?                              (M. Friedman, 1937)
    Nemenyi's difference  q(level, k, inf) / sqrt(2) * sqrt(k (k + 1) / (6 n)), q of the studentized range   (P. Nemenyi, 1963)
    Wilcoxon-Holm         signed-rank tests of all pairs, corrected                               (J. Demsar, 2006; Benavoli et al., 2016)

Scores are [n blocks, k methods], higher is better; rank 1 is the best, ties share theirs.
"""

import itertools
import math
from typing import Any

import numpy as np
from scipy import stats

from peftjax.evals.statistics.holm import holm


def mean_ranks(scores: Any) -> np.ndarray:
    """[k]: the mean over blocks of each method's rank."""
    return stats.rankdata(-_scores(scores), axis=1).mean(axis=0)


def friedman(scores: Any) -> float:
    """p-value of all methods being alike; needs three methods. 1 where every block is one tie."""
    scores = _scores(scores)
    if scores.shape[1] < 3:
        raise ValueError(f"Friedman's test is of three methods or more; found {scores.shape[1]}")
    if (scores == scores[:, :1]).all():
        return 1.0
    return float(stats.friedmanchisquare(*scores.T).pvalue)


def critical_difference(methods: int, blocks: int, level: float = 0.05) -> float:
    """Nemenyi's: mean ranks that are farther apart differ."""
    if methods < 2 or blocks < 1:
        raise ValueError(f"a critical difference needs two methods and a block; found {methods} and {blocks}")
    q = float(stats.studentized_range.ppf(1 - level, methods, 1e6)) / math.sqrt(2)  # 1e6 degrees: infinitely many warn
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def wilcoxon_holm(scores: Any) -> dict[tuple[int, int], float]:
    """(i, j) -> corrected p-value of methods i < j. Exact for few blocks without ties; 1 where two are equal everywhere."""
    scores = _scores(scores)
    pairs = list(itertools.combinations(range(scores.shape[1]), 2))
    found = [1.0 if (scores[:, i] == scores[:, j]).all() else float(stats.wilcoxon(scores[:, i], scores[:, j]).pvalue) for i, j in pairs]
    return dict(zip(pairs, holm(found), strict=True))


def _scores(scores: Any) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2 or not np.isfinite(scores).all():
        raise ValueError(f"ranks need finite scores [blocks, methods] of at least two methods; found shape {scores.shape}")
    return scores
