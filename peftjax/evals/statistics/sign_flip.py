"""Paired permutation test: under no difference, either sign of a unit's difference was as likely.

Exact where all 2^U signs can be tried, else from random ones (R. A. Fisher, 1935). It takes the mean over seeds of each unit, so what it
rejects holds for these seeds; `peftjax.evals.statistics.crossed` speaks of others too.
"""

from typing import Any

import numpy as np
from scipy import stats

from peftjax.evals.statistics.differences import require


def sign_flip(differences: Any, count: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of differences [S, U] (or [U]), of at most `count` + 1 arrangements of signs."""
    of_unit = require(differences).mean(axis=0)
    of_unit = of_unit[of_unit != 0]  # a sign changes nothing of them
    if not of_unit.size:
        return 1.0
    found = stats.permutation_test(
        (of_unit,), lambda x, axis: np.sum(x, axis=axis), permutation_type="samples", vectorized=True, n_resamples=count, batch=500,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
