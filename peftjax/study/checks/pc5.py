"""PC5: where LoRA goes at matched trainable numbers: attention, MLP or both (LoRA Without Regret, 2025; 2405.09673; 2110.04366).

Predicted: all linear layers at least as good as the MLP alone, the MLP better than attention alone.
"""

from peftjax.study.checks import trials
from peftjax.study.checks.arms import BETTER, compare, losses
from peftjax.study.checks.finding import HOLDS, OPEN, TIE, Claim, Finding, Plot, Table

ATTENTION, MLP, ALL, REGION = "attention", "MLP", "all linear", 0.01  # of the loss of the MLP alone
NOT = "not reproduced at this scale"
pieces = trials.pieces


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the rows of tuning and measuring."""
    tuning, rows, at = measured["tune"]["rows"], measured["measure"]["rows"], measured["measure"]["at"]
    loss = losses(rows, MLP, at[MLP]).mean()
    pairs = ((MLP, ATTENTION), (ALL, MLP), (ALL, ATTENTION))
    found = dict(zip(pairs, compare(rows, [((a, at[a]), (b, at[b])) for a, b in pairs], REGION * loss), strict=True))
    claims = []
    for (a, b), predicted, holding in ((pairs[0], "lower loss, interval without 0", (BETTER,)), (pairs[1], "not worse", (BETTER, TIE))):
        one = found[a, b]
        low, high = one.effect.interval()
        verdict = HOLDS if one.word in holding else OPEN if one.word == OPEN else one.word if one.word == TIE else NOT
        claims.append(Claim(f"{a} - {b}", predicted, f"{100 * one.effect.mean / loss:+.1f} % of the loss [{100 * low / loss:+.1f}, "
                            f"{100 * high / loss:+.1f}], p (Holm) {one.p:.3g}: {one.word}", verdict))
    parameters = {name: next(row["parameters"] for row in rows if row["arm"] == name) for name in at}
    table = [(name, parameters[name], f"{at[name]:g}" + (" (edge)" if name in measured["tune"]["edge"] else ""),
              f"{losses(rows, name, at[name]).mean():.4f}", f"{losses(rows, name, at[name]).std(ddof=1):.4f}") for name in at]
    curves = {name: tuple(zip(*trials.scores_of(tuning, name).items(), strict=True)) for name in at}
    return Finding(
        f"{len(losses(rows, MLP, at[MLP]))} seeds, test loss in nats a token; rate chosen on validation.", tuple(claims),
        (Table("At own rates", ("targets", "trains", "rate", "loss", "sd over seeds"), table),),
        Plot("Tuning: loss on validation against the rate", "learning rate", "loss, nats a token", curves, log_x=True),
    )
