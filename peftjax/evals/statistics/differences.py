"""Paired differences of two methods, the form that every test here takes: one row a seed, one column a unit.

    d[s, u] = score of A - score of B        same seed (data order, initial draws), same items            float64 [S, U]

Items of one group (rows of one sentence template, questions on one product) stand or fall together, so the unit that is drawn from the
world is the group. `by_group` gives one column a group, such that the mean of all columns is the mean over items:

    u[s, g] = m + G/N * sum over items i of g of (d[s, i] - m)        m: the mean of all, G groups, N items

which is the linear form of a ratio estimator (W. G. Cochran, Sampling Techniques, 1977, chapter 6).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def paired(a: Any, b: Any) -> np.ndarray:
    """a - b of scores [S, U] (or [U], one seed) as float64 [S, U].

    Raises:
        ValueError: shapes that differ, fewer than two units, values that are not finite.
    """
    a, b = (np.atleast_2d(np.asarray(scores, np.float64)) for scores in (a, b))
    if a.shape != b.shape:
        raise ValueError(f"a paired comparison needs the same seeds and items on both sides; scores have shapes {a.shape} and {b.shape}")
    return require(a - b)


def require(differences: Any) -> np.ndarray:
    """`differences` as float64 [S, U].

    Raises:
        ValueError: not one row a seed and one column a unit, fewer than two units, or values that are not finite.
    """
    differences = np.atleast_2d(np.asarray(differences, np.float64))
    if differences.ndim != 2 or differences.shape[1] < 2 or not len(differences):
        raise ValueError(f"paired differences are [seeds, units] with at least two units; found shape {differences.shape}")
    if not np.isfinite(differences).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(differences))} of {differences.size} paired differences are not finite")
    return differences


def by_group(differences: Any, groups: Sequence[str]) -> np.ndarray:
    """Differences by item [S, N] -> by group [S, G], groups in the order of their first item; the mean stays the same.

    Raises:
        ValueError: not one group an item, or fewer than two groups.
    """
    differences = require(differences)
    if len(groups) != differences.shape[1]:
        raise ValueError(f"there must be a group for each of {differences.shape[1]} items; found {len(groups)}")
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    member = np.zeros((differences.shape[1], len(number)))
    member[np.arange(len(groups)), [number[group] for group in groups]] = 1.0
    mean = differences.mean()
    return require(mean + (differences - mean) @ member * (len(number) / len(groups)))
