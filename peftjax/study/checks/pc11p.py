"""PC11, statistical part: LoRA on a base held in 4 bits against LoRA on the dense one (QLoRA, 2305.14314, 2023: full recovery).

Predicted: with rates of their own the loss on NF4 with double quantisation is within 2 % of that on the dense base, and symmetric int4
loses no less than NF4.
"""

from peftjax.study.checks import trials
from peftjax.study.checks.arms import compare, losses
from peftjax.study.checks.finding import FAILS, HOLDS, OPEN, TIE, Claim, Finding, Plot, Table

DENSE, NF4, INT4, REGION = "dense base", "NF4 base", "int4 base", 0.02  # of the loss on the dense base
pieces = trials.pieces


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the rows of tuning and measuring."""
    tuning, rows, at = measured["tune"]["rows"], measured["measure"]["rows"], measured["measure"]["at"]
    loss = losses(rows, DENSE, at[DENSE]).mean()
    pairs = ((NF4, DENSE), (INT4, DENSE))
    found = dict(zip(pairs, compare(rows, [((a, at[a]), (b, at[b])) for a, b in pairs], REGION * loss), strict=True))
    claims = []
    for (a, b), one in found.items():
        low, high = one.effect.interval()
        claims.append(Claim(f"LoRA on the {a} ends where it does on the {b}", "within 2 %",
                            f"{100 * one.effect.mean / loss:+.2f} % [{100 * low / loss:+.2f}, {100 * high / loss:+.2f}]: {one.word}",
                            one.word if one.word in (TIE, OPEN) else FAILS))
    (against,) = compare(rows, [((INT4, at[INT4]), (NF4, at[NF4]))], REGION * loss)
    low, high = against.effect.interval()
    claims.append(Claim("symmetric int4 loses no less than NF4", "a difference of 0 or more",
                        f"{100 * against.effect.mean / loss:+.2f} % [{100 * low / loss:+.2f}, {100 * high / loss:+.2f}]: {against.word}",
                        HOLDS if low >= 0 else FAILS if high < 0 else OPEN))
    table = [(name, f"{at[name]:g}" + (" (edge)" if name in measured["tune"]["edge"] else ""),
              f"{losses(rows, name, at[name]).mean():.4f}", f"{losses(rows, name, at[name]).std(ddof=1):.4f}") for name in at]
    curves = {name: tuple(zip(*trials.scores_of(tuning, name).items(), strict=True)) for name in at}
    return Finding(
        f"{len(losses(rows, DENSE, at[DENSE]))} seeds, test loss in nats a token; rate chosen on validation.", tuple(claims),
        (Table("At own rates", ("base", "rate", "loss", "sd over seeds"), table),),
        Plot("Tuning: loss on validation against the rate", "learning rate", "loss, nats a token", curves, log_x=True),
    )
