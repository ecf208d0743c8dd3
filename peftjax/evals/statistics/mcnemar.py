"""McNemar's exact test: of the items that one method got right and the other wrong, was it a coin that chose? (Q. McNemar, 1947)"""

from typing import Any

import numpy as np
from scipy import stats

from peftjax.evals.statistics.differences import require


def discordant(differences: Any) -> tuple[int, int]:
    """(only A right, only B right) of right-or-wrong differences of one seed, values -1, 0 and 1, [U] or [1, U].

    Raises:
        ValueError: several seeds, which are no independent items, or other values.
    """
    d = require(differences)
    if len(d) != 1:
        raise ValueError(f"McNemar's test is of one seed: an item of {len(d)} seeds is no {len(d)} items")
    if stray := sorted(set(np.unique(d)) - {-1.0, 0.0, 1.0}):
        raise ValueError(f"McNemar's test is of right or wrong: differences are -1, 0 or 1; found {stray[0]:g}")
    return int(np.count_nonzero(d == 1)), int(np.count_nonzero(d == -1))


def mcnemar(differences: Any) -> float:
    """Two-sided exact p-value; 1 where no item differs."""
    ours, theirs = discordant(differences)
    return 1.0 if not ours + theirs else float(stats.binomtest(ours, ours + theirs).pvalue)
