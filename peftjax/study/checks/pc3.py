"""PC3: LoRA's best learning rate against that of full fine-tuning, and how it moves with the rank (LoRA Without Regret, 2025; 2602.06204).

    s = alpha / r         best rate does not depend on the rank
    s = alpha / sqrt(r)   it falls as r^-1/2 against that
    s constant            it falls as r^-1 against that

With s = alpha / r the first steps do not depend on the rank either: training losses of ranks 4 and 64 are within 2 %.

The three scales agree at rank 16, whose runs they share. A best rate is the lowest point of a parabola through the best rate of the grid
and its neighbours, over the logarithm of the rate.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from peftjax.study.checks import trials
from peftjax.study.checks.arms import over_seeds
from peftjax.study.checks.finding import FAILS, HOLDS, Claim, Finding, Plot, Table

FULL = "full"
RANKS = (1, 4, 16, 64)
SHARED = 16
SCALES = {"alpha/r": lambda rank: SHARED / rank, "alpha/sqrt(r)": lambda rank: math.sqrt(SHARED / rank), "constant": lambda rank: 1.0}
EARLY, FEW_PERCENT = slice(15, 25), 0.02  # steps whose training loss is compared, and by how much at most
EXPECTED = {"alpha/r": (-0.25, 0.75), "alpha/sqrt(r)": (-0.75, 0.25), "constant": (-1.25, -0.25)}


def arm_name(scale: str, rank: int) -> str:
    """Of a LoRA; that of the shared rank has one for all scales."""
    return f"LoRA r{rank}" if rank == SHARED else f"LoRA r{rank}, {scale}"


def pieces(config, folder, say):
    """Tuning alone: it is the rates that are asked for."""
    return {"tune": lambda: trials.tune(config, folder, say)}


def optimum(scores: Mapping[float, float]) -> tuple[float, bool]:
    """(log10 of the best rate, whether it lies inside the grid) of rate -> loss."""
    rates = sorted(scores)
    x, y = np.log10(rates), np.asarray([scores[rate] for rate in rates])
    best = int(np.argmin(y))
    if best in (0, len(rates) - 1) or not np.isfinite(y[best - 1:best + 2]).all():
        return float(x[best]), 0 < best < len(rates) - 1
    a, b, _ = np.polyfit(x[best - 1:best + 2], y[best - 1:best + 2], 2)
    return float(np.clip(-b / (2 * a), x[best - 1], x[best + 1])) if a > 0 else float(x[best]), True


def by_seed(rows: Sequence[Mapping], name: str) -> dict[int, tuple[float, bool]]:
    """Seed -> optimum of its own runs."""
    seeds = sorted({row["seed"] for row in rows if row["arm"] == name})
    return {seed: optimum(trials.scores_of([row for row in rows if row["seed"] == seed], name)) for seed in seeds}


def early(rows: Sequence[Mapping]) -> tuple[float, np.ndarray]:
    """(the best rate of rank 16 at which ranks 4 and 64 were tried too, s = alpha / r; by seed, how far rank 64's training loss around step
    20 is above rank 4's, as a fraction)."""
    names, first = [arm_name("alpha/r", rank) for rank in (4, 64)], trials.scores_of(rows, arm_name("", SHARED))
    found = {(row["arm"], row["rate"], row["seed"]): row for row in rows if not row["error"]}
    seeds = sorted({row["seed"] for row in rows})
    rates = [rate for rate in first if all((name, rate, seed) in found for name in names for seed in seeds)]
    rate = min(rates, key=lambda one: first[one])
    low, high = (np.asarray([np.mean(found[name, rate, seed]["losses"][EARLY]) for seed in seeds]) for name in names)
    return rate, high / low - 1


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the rows of tuning."""
    rows = measured["tune"]["rows"]
    names = [FULL, *dict.fromkeys(arm_name(scale, rank) for scale in SCALES for rank in RANKS)]
    best = {name: by_seed(rows, name) for name in names}
    seeds = sorted(best[FULL])
    ratios = np.asarray([best[arm_name("", SHARED)][seed][0] - best[FULL][seed][0] for seed in seeds])
    low, high = over_seeds(ratios)
    claims = [Claim(
        f"LoRA's best rate is above that of full fine-tuning (rank {SHARED})", "ratio in [2, 30]; more than 1.5, interval without 1",
        f"{10 ** ratios.mean():.2f} times [{10 ** low:.2f}, {10 ** high:.2f}]",
        HOLDS if ratios.mean() > math.log10(1.5) and low > 0 else FAILS,
    )]
    slopes = {}
    for scale in SCALES:
        each = np.asarray([
            np.polyfit(np.log10(RANKS), [best[arm_name(scale, rank)][seed][0] for rank in RANKS], 1)[0] for seed in seeds
        ])
        slopes[scale] = each
        low, high = EXPECTED[scale]
        ends = over_seeds(each)
        claims.append(Claim(f"exponent of the rank in the best rate, s = {scale}", f"in [{low:g}, {high:g}]",
                            f"{each.mean():+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}]", HOLDS if low <= each.mean() <= high else FAILS))
    means = [slopes[scale].mean() for scale in SCALES]
    claims.append(Claim("the exponents are ordered", "alpha/r above alpha/sqrt(r) above constant",
                        ", ".join(f"{mean:+.2f}" for mean in means), HOLDS if means[0] > means[1] > means[2] else FAILS))
    rate, apart = early(rows)
    claims.append(Claim("training losses of ranks 4 and 64 around step 20 at one rate, s = alpha/r", "within 2 %",
                        f"rank 64 {100 * apart.mean():+.1f} % ({', '.join(f'{100 * one:+.1f}' for one in apart)}) at {rate:g}",
                        HOLDS if abs(apart.mean()) <= FEW_PERCENT else FAILS))
    pooled = {name: trials.scores_of(rows, name) for name in names}
    edges = [name for name in names if not all(inside for _, inside in best[name].values())]
    table = [(name, f"{10 ** np.mean([x for x, _ in best[name].values()]):.2e}", f"{min(pooled[name].values()):.4f}",
              "an edge in some seed" if name in edges else "inside") for name in names]
    curves = {name: tuple(zip(*pooled[name].items(), strict=True)) for name in names}
    return Finding(
        f"{len(seeds)} seeds, loss on validation after the last step; " + (f"no interior optimum in some seed: {', '.join(edges)}." if edges
                                                                           else "every optimum is inside its grid."),
        tuple(claims), (Table("Best rates", ("arm", "best rate", "loss there", "optimum"), table),),
        Plot("Loss on validation against the rate", "learning rate", "loss, nats a token", curves, log_x=True),
    )
