"""Differences with known seed, unit and error effects, for tests of error rates."""

import numpy as np


def differences(rng, seeds: int, units: int, mean: float = 0.0, seed_sd: float = 0.0, unit_sd: float = 0.0, error_sd: float = 1.0):
    """[S, U]: mean + seed effect + unit effect + error, all normal."""
    return (
        mean + seed_sd * rng.standard_normal((seeds, 1)) + unit_sd * rng.standard_normal((1, units))
        + error_sd * rng.standard_normal((seeds, units))
    )


def rate(decide, samples) -> float:
    """Share of the samples for which `decide` is true."""
    return float(np.mean([bool(decide(sample)) for sample in samples]))


def within(found: float, expected: float, count: int, deviations: float = 3.5) -> bool:
    """Whether a rate of `count` simulations is `expected` up to chance."""
    return abs(found - expected) <= deviations * (expected * (1 - expected) / count) ** 0.5
