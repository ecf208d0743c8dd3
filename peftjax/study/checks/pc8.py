"""PC8: PiSSA learns faster at first, and ends where LoRA does (2404.02948, 2024, whose tables have one rate for both).

(a) at LoRA's rate its training loss is lower at step 20, in at least four of five seeds; (b) at own rates it ends within 1 % (two one-sided
tests), and (c) its best rate is lower.
"""

import numpy as np
from scipy import stats

from peftjax.study.checks import trials
from peftjax.study.checks.arms import compare, losses, of_arm
from peftjax.study.checks.finding import FAILS, HOLDS, TIE, Claim, Finding, Plot, Table

LORA, PISSA, REGION, EARLY = "LoRA", "PiSSA", 0.01, 20
pieces = trials.pieces


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the rows of tuning and measuring."""
    tuning, rows, at = measured["tune"]["rows"], measured["measure"]["rows"], measured["measure"]["at"]
    early = {name: np.asarray([np.mean(row["losses"][EARLY - 3:EARLY + 2]) for row in of_arm(rows, name, at[LORA])]) for name in at}
    lower = int((early[PISSA] < early[LORA]).sum())
    seeds = len(early[LORA])
    sign = stats.binomtest(lower, seeds, alternative="greater").pvalue
    lora = losses(rows, LORA, at[LORA]).mean()
    names = [name for name in at if name != LORA]
    found = dict(zip(names, compare(rows, [((n, at[n]), (LORA, at[LORA])) for n in names], REGION * lora), strict=True))
    low, high = found[PISSA].effect.interval()
    said = f"{100 * found[PISSA].effect.mean / lora:+.2f} % [{100 * low / lora:+.2f}, {100 * high / lora:+.2f}]: {found[PISSA].word}"
    claims = (
        Claim(f"at LoRA's rate PiSSA's training loss is lower around step {EARLY}", f"in at least 4 of 5 seeds ({seeds} here)",
              f"in {lower} of {seeds}, by {100 * (1 - early[PISSA].mean() / early[LORA].mean()):.1f} % on average (sign test p {sign:.3g})",
              HOLDS if lower >= 0.8 * seeds else FAILS),
        Claim("at own rates it ends where LoRA does", "within 1 %", said, TIE if found[PISSA].word == TIE else found[PISSA].word),
        Claim("its best rate is lower", "lower", f"{at[PISSA]:g} against {at[LORA]:g}", HOLDS if at[PISSA] < at[LORA] else FAILS),
    )
    steps = range(1, 1 + len(of_arm(rows, LORA, at[LORA])[0]["losses"]))
    series = {f"{name}, at LoRA's rate": (list(steps), _smooth(np.mean([r["losses"] for r in of_arm(rows, name, at[LORA])], axis=0)))
              for name in at}
    series |= {f"{name}, own rate": (list(steps), _smooth(np.mean([r["losses"] for r in of_arm(rows, name, at[name])], axis=0)))
               for name in names}
    table = [(name, f"{at[name]:g}" + (" (edge)" if name in measured["tune"]["edge"] else ""), f"{early[name].mean():.4f}",
              f"{losses(rows, name, at[LORA]).mean():.4f}", f"{losses(rows, name, at[name]).mean():.4f}",
              "" if name == LORA else found[name].word) for name in at]
    return Finding(
        f"{seeds} seeds; rate chosen on validation, {len(trials.scores_of(tuning, LORA))} rates for LoRA.", claims,
        (Table("Losses, nats a token", ("arm", "own rate", f"training, step {EARLY}, LoRA's rate", "test, LoRA's rate", "test, own rate",
                                        "against LoRA"), table),),
        Plot("Training loss, mean over seeds and five steps", "step", "loss, nats a token", series),
    )


def _smooth(values: np.ndarray) -> list[float]:
    """Means of each value and the two on either side."""
    return [float(values[max(0, n - 2):n + 3].mean()) for n in range(len(values))]
