"""PC8: PiSSA learns faster at first, and ends where LoRA does (2404.02948, 2024, whose tables have one rate for both).

(a) at LoRA's rate its training loss is lower at step 20, in at least four of five seeds; (b) at own rates it ends within 1 % (two one-sided
tests), and (c) its best rate is lower.

Two controls, which start off zero too and subtract their start: the minor components of the weight (MiLoRA, 2406.09044, 2024), and random
orthonormal directions with PiSSA's singular values, so of equal rank and norm. If it is the principal directions that PiSSA is fast by, (d)
at LoRA's rate its loss around step 20 is below each control's in at least four of five seeds; (e) at own rates MiLoRA ends within 1 % of
LoRA. How the random one ends is told, and nothing is asserted of it.
"""

from collections.abc import Mapping

import numpy as np
from scipy import stats

from peftjax.study.checks import trials
from peftjax.study.checks.arms import Comparison, compare, losses, of_arm
from peftjax.study.checks.finding import FAILS, HOLDS, REPORTED, Claim, Finding, Plot, Table

LORA, PISSA, MINOR, RANDOM, REGION, EARLY = "LoRA", "PiSSA", "MiLoRA", "random directions", 0.01, 20
pieces = trials.pieces


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the rows of tuning and measuring."""
    tuning, rows, at = measured["tune"]["rows"], measured["measure"]["rows"], measured["measure"]["at"]
    early = {name: np.asarray([np.mean(row["losses"][EARLY - 3:EARLY + 2]) for row in of_arm(rows, name, at[LORA])]) for name in at}
    seeds = len(early[LORA])
    lora = losses(rows, LORA, at[LORA]).mean()
    names = [name for name in at if name != LORA]
    found: dict[str, Comparison] = {}
    for family in ((PISSA,), tuple(name for name in names if name != PISSA)):  # (b) is a test of its own, the controls' are corrected
        pairs = [((name, at[name]), (LORA, at[LORA])) for name in family]
        found |= dict(zip(family, compare(rows, pairs, REGION * lora), strict=True)) if pairs else {}
    claims = [
        _faster(early, LORA),
        Claim("at own rates it ends where LoRA does", "within 1 %", _said(found[PISSA], lora), found[PISSA].word),
        Claim("its best rate is lower", "lower", f"{at[PISSA]:g} against {at[LORA]:g}", HOLDS if at[PISSA] < at[LORA] else FAILS),
        *(_faster(early, name) for name in names if name != PISSA),
    ]
    if MINOR in found:
        claims.append(Claim("at own rates MiLoRA ends where LoRA does", "within 1 %", _said(found[MINOR], lora), found[MINOR].word))
    if RANDOM in found:
        claims.append(Claim("random directions against LoRA at own rates", "nothing asserted", _said(found[RANDOM], lora), REPORTED))
    steps = range(1, 1 + len(of_arm(rows, LORA, at[LORA])[0]["losses"]))
    series = {f"{name}, at LoRA's rate": (list(steps), _smooth(np.mean([r["losses"] for r in of_arm(rows, name, at[LORA])], axis=0)))
              for name in at}
    series |= {f"{name}, own rate": (list(steps), _smooth(np.mean([r["losses"] for r in of_arm(rows, name, at[name])], axis=0)))
               for name in names}
    table = [(name, f"{at[name]:g}" + (" (edge)" if name in measured["tune"]["edge"] else ""), f"{early[name].mean():.4f}",
              f"{losses(rows, name, at[LORA]).mean():.4f}", f"{losses(rows, name, at[name]).mean():.4f}",
              "" if name == LORA else found[name].word) for name in at]
    return Finding(
        f"{seeds} seeds; rate chosen on validation, {len(trials.scores_of(tuning, LORA))} rates for LoRA.", tuple(claims),
        (Table("Losses, nats a token", ("arm", "own rate", f"training, step {EARLY}, LoRA's rate", "test, LoRA's rate", "test, own rate",
                                        "against LoRA"), table),),
        Plot("Training loss, mean over seeds and five steps", "step", "loss, nats a token", series),
    )


def _faster(early: Mapping[str, np.ndarray], other: str) -> Claim:
    """PiSSA's training loss around the early step against another arm's, both at LoRA's rate: values by seed."""
    lower, seeds = int((early[PISSA] < early[other]).sum()), len(early[PISSA])
    sign = stats.binomtest(lower, seeds, alternative="greater").pvalue
    return Claim(
        f"at LoRA's rate PiSSA's training loss is lower than that of {other} around step {EARLY}",
        f"in at least 4 of 5 seeds ({seeds} here)",
        f"in {lower} of {seeds}, by {100 * (1 - early[PISSA].mean() / early[other].mean()):.1f} % on average (sign test p {sign:.3g})",
        HOLDS if lower >= 0.8 * seeds else FAILS,
    )


def _said(one: Comparison, loss: float) -> str:
    low, high = one.effect.interval()
    return f"{100 * one.effect.mean / loss:+.2f} % [{100 * low / loss:+.2f}, {100 * high / loss:+.2f}]: {one.word}"


def _smooth(values: np.ndarray) -> list[float]:
    """Means of each value and the two on either side."""
    return [float(values[max(0, n - 2):n + 3].mean()) for n in range(len(values))]
