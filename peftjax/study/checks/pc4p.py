"""PC4, statistical part: what rsLoRA's scale is worth once both scales have rates of their own (rsLoRA, 2312.03732, 2023).

The scale of a LoRA trained by Adam is undone by its rate but for its start, so the prediction is a tie: at rank 64 the losses of
s = alpha / sqrt(r) and s = alpha / r are within 1 %, by two one-sided tests.
"""

from peftjax.study.checks import trials
from peftjax.study.checks.arms import compare, losses
from peftjax.study.checks.finding import FAILS, OPEN, REPORTED, TIE, Claim, Finding, Plot, Table

PLAIN, STABILISED, REGION = "LoRA r64, alpha/r", "LoRA r64, alpha/sqrt(r)", 0.01  # of the loss with alpha / r
pieces = trials.pieces


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the rows of tuning and measuring."""
    tuning, rows, at = measured["tune"]["rows"], measured["measure"]["rows"], measured["measure"]["at"]
    loss = losses(rows, PLAIN, at[PLAIN]).mean()
    (one,) = compare(rows, [((STABILISED, at[STABILISED]), (PLAIN, at[PLAIN]))], REGION * loss)
    low, high = one.effect.interval()
    claims = (
        Claim("rank 64 ends alike with alpha/sqrt(r) and alpha/r, at own rates", "within 1 %",
              f"{100 * one.effect.mean / loss:+.2f} % [{100 * low / loss:+.2f}, {100 * high / loss:+.2f}]: {one.word}",
              one.word if one.word in (TIE, OPEN) else FAILS),
        Claim("best rate with alpha/r over that with alpha/sqrt(r)", "nothing asserted",
              f"{at[PLAIN] / at[STABILISED]:.3g} times", REPORTED),
    )
    table = [(name, f"{at[name]:g}" + (" (edge)" if name in measured["tune"]["edge"] else ""),
              f"{losses(rows, name, at[name]).mean():.4f}", f"{losses(rows, name, at[name]).std(ddof=1):.4f}") for name in at]
    curves = {name: tuple(zip(*trials.scores_of(tuning, name).items(), strict=True)) for name in at}
    return Finding(
        f"{len(losses(rows, PLAIN, at[PLAIN]))} seeds, test loss in nats a token; rate chosen on validation.", claims,
        (Table("At own rates", ("arm", "rate", "loss", "sd over seeds"), table),),
        Plot("Tuning: loss on validation against the rate", "learning rate", "loss, nats a token", curves, log_x=True),
    )
