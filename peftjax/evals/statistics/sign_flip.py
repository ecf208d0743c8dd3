"""Paired permutation test: under no difference, either sign of a unit's difference was as likely.

Exact where all 2^U signs can be tried, else from random ones (R. A. Fisher, 1935). It takes the mean over seeds of each unit, so what it
rejects holds for these seeds; `peftjax.evals.statistics.crossed` speaks of others too.
"""

import itertools
from typing import Any

import numpy as np

from peftjax.evals.statistics.differences import require


def sign_flip(differences: Any, count: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of differences [S, U] (or [U]), of at most `count` + 1 arrangements of signs."""
    of_unit = require(differences).mean(axis=0)
    of_unit = of_unit[of_unit != 0]  # a sign changes nothing of them
    if not of_unit.size:
        return 1.0
    if 2.0**of_unit.size <= count + 1:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=of_unit.size)))
        return float(np.mean(np.abs(signs @ of_unit) >= abs(of_unit.sum()) * (1 - 1e-12)))
    signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, (count, of_unit.size))
    extreme = np.count_nonzero(np.abs(signs @ of_unit) >= abs(of_unit.sum()) * (1 - 1e-12))
    return (extreme + 1) / (count + 1)  # the signs that were found are one of the arrangements
