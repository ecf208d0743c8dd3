"""PC9: LoRA's variants at rates of their own (2602.04998, 2602.09492, 2601.22708, 2026: "within 1-2 %").

The null hypothesis is that variants do not differ once each has its own learning rate. Both columns are told: at LoRA's rate, and at its
own. The prediction is a spread of the losses at own rates of at most 2 %, and no variant that is told apart after Holm's correction.
"""

import numpy as np

from peftjax.study.checks import trials
from peftjax.study.checks.arms import BETTER, WORSE, compare, losses
from peftjax.study.checks.finding import FAILS, HOLDS, REPORTED, Claim, Finding, Plot, Table

LORA, REGION = "LoRA", 0.02  # of LoRA's loss
HEADER = ("arm", "own rate", "loss at own rate", "loss at LoRA's rate", "difference, 95 %", "p (Holm)", "verdict")
pieces = trials.pieces


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the rows of tuning and measuring."""
    tuning, rows, at = measured["tune"]["rows"], measured["measure"]["rows"], measured["measure"]["at"]
    lora = losses(rows, LORA, at[LORA]).mean()
    others = [name for name in at if name != LORA]
    own = dict(zip(others, compare(rows, [((n, at[n]), (LORA, at[LORA])) for n in others], REGION * lora), strict=True))
    same = {name: losses(rows, name, at[LORA]) for name in at}
    mean = {name: float(losses(rows, name, at[name]).mean()) for name in at}
    finite = {name: float(values.mean()) for name, values in same.items() if len(values)}
    spread, spread_same = (max(v.values()) / min(v.values()) - 1 for v in (mean, finite))
    beyond = [name for name, one in own.items() if one.word in (BETTER, WORSE)]
    claims = [
        Claim("losses at own rates lie within 2 %", "spread <= 2 %", f"spread {100 * spread:.1f} %", HOLDS if spread <= REGION else FAILS),
        Claim("told apart from LoRA after Holm's correction", "nothing", ", ".join(f"{n} ({own[n].word})" for n in beyond) or "nothing",
              FAILS if beyond else HOLDS),
        Claim("losses at LoRA's rate lie further apart than at own rates", "larger spread",
              f"{100 * spread_same:.1f} % against {100 * spread:.1f} %", HOLDS if spread_same > spread else FAILS),
        Claim("best rates lie apart", "up to 10 times", f"{max(at.values()) / min(at.values()):.3g} times", REPORTED),
    ]
    rows_of_table = [
        (name, f"{at[name]:g}" + (" (edge)" if name in measured["tune"]["edge"] else ""), _mean_sd(losses(rows, name, at[name])),
         _mean_sd(same[name]), "" if name == LORA else _interval(own[name].effect, lora), "" if name == LORA else f"{own[name].p:.3g}",
         "" if name == LORA else own[name].word) for name in at
    ]
    seeds = len(losses(rows, LORA, at[LORA]))
    curves = {name: tuple(zip(*trials.scores_of(tuning, name).items(), strict=True)) for name in at}
    return Finding(
        f"{seeds} seeds, test loss in nats a token; rate chosen on validation, {len(trials.scores_of(tuning, LORA))} rates for LoRA.",
        tuple(claims),
        (Table("Variants against LoRA", HEADER, rows_of_table),),
        Plot("Tuning: loss on validation against the rate", "learning rate", "loss, nats a token", curves, log_x=True),
    )


def _mean_sd(values: np.ndarray) -> str:
    return "diverged" if not len(values) else f"{values.mean():.4f} ({values.std(ddof=1) if len(values) > 1 else 0:.4f})"


def _interval(effect, loss: float) -> str:
    low, high = effect.interval()
    return f"{100 * effect.mean / loss:+.1f} % [{100 * low / loss:+.1f}, {100 * high / loss:+.1f}]"
