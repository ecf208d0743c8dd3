"""Equivalence by two one-sided tests (D. J. Schuirmann, 1987), and what a pair of tests lets one say.

`tost` is small where the difference lies inside (-region, +region): where both "it is -region or less" and "it is +region or more" are
refused. At level 5 % that is the 90 % interval lying inside the region. Not being significant is no evidence of equality; this is.
"""

from peftjax.evals.statistics.crossed import Effect

BETTER, WORSE, EQUIVALENT, OPEN = "better", "worse", "no difference", "not told apart"


def tost(effect: Effect, region: float) -> float:
    """p-value of the difference being outside (-region, region).

    Raises:
        ValueError: a region that is not positive.
    """
    if not region > 0:
        raise ValueError(f"the region of equivalence must be positive, in the metric's own unit; found {region}")
    mirrored = Effect(-effect.mean, effect.error, effect.dof, effect.seeds, effect.units)
    return max(effect.p_above(-region), mirrored.p_above(-region))


def verdict(effect: Effect, p: float, p_equivalent: float, level: float = 0.05) -> str:
    """What may be said at `level` of a difference, from its (corrected) p-values of a test and of `tost`.

    BETTER or WORSE: a difference was found that is not shown to be within the region. EQUIVALENT: it is within the region, whether or not
    it is exactly zero. OPEN: neither was shown; more seeds or items would be needed.
    """
    if p_equivalent <= level:
        return EQUIVALENT
    if p <= level:
        return BETTER if effect.mean > 0 else WORSE
    return OPEN
