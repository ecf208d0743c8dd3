"""Spectra of weight deltas: how much rank an adapter has, and how much of it is used.

    spectra(params, "tone")["blocks/7/attn/q/kernel"]      singular values of ΔW [K], largest first
    effective_rank(values)                                 exp of the entropy of values / Σ values (Roy and Vetterli, EUSIPCO 2007)
    stable_rank(values)                                    ‖ΔW‖² / σ₁²

Values of low-rank deltas are those of [R, R] cores; nothing dense is taken apart for them.
"""

import math

import numpy as np

from peftjax.peft.changes import changes
from peftjax.peft.factored import rank_within, values


def spectra(params: dict, name: str) -> dict[str, np.ndarray]:
    """Singular values of what an adapter changes, float64 [K], by path with the layer's number; those that are rounding are left out.

    Raises:
        ValueError, TypeError: as of `peftjax.peft.changes.changes`.
    """
    found = {}
    for key, changed in changes(params, name).items():
        one = values(changed.read().weight)
        found[key] = one[: rank_within(one, 0.0)]
    return found


def effective_rank(spectrum: np.ndarray) -> float:
    """Between 1, where one value is all there is, and their number, where all are equal; 0 of nothing."""
    used = spectrum[spectrum > 0]
    if not len(used):
        return 0.0
    shares = used / used.sum()
    return math.exp(-float(np.sum(shares * np.log(shares))))


def stable_rank(spectrum: np.ndarray) -> float:
    """‖ΔW‖² in the Frobenius norm over the square of the largest value; 0 of nothing."""
    largest = float(spectrum.max(initial=0.0))
    return float(np.sum(np.square(spectrum / largest))) if largest else 0.0
