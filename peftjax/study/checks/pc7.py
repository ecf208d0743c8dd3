"""PC7: learning and forgetting (LoRA Learns Less and Forgets Less, 2405.09673, 2024; RL's Razor, 2509.04259, 2025).

Every checkpoint of every arm, rate and seed is a point: the loss on the target, what general text lost, and KL(base || tuned) on the target
(`peftjax.study.checks.shift`).

    (a) at rates of their own LoRA forgets less than full fine-tuning
    (b) over all points forgetting follows the KL: Spearman's rank correlation of at least 0.9
    (c) at one loss on the target, which all arms reach, who forgets less? Nothing is asserted: sources disagree
    control: one LoRA with its scale times 0 to 1.25; 0 is the base exactly, 1 the checkpoint

An arm's forgetting at a loss is the least of its points that reach it, of any rate and step. Points whose loss on the target is above the
base's have learnt nothing; they count for (b), and are no part of (c).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from peftjax.peft.lora import LoRA
from peftjax.study.checks import trials
from peftjax.study.checks.arms import over_seeds
from peftjax.study.checks.finding import FAILS, HOLDS, OPEN, REPORTED, Claim, Finding, Plot, Table
from peftjax.study.checks.shift import Shift
from peftjax.train.adapters import of_run

FULL, LORA, LEAST = "full", "LoRA r16", 0.9
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
DRAWS = 2000  # of the bootstrap over runs


def pieces(config, folder, say):
    """"tune", "points" (one a checkpoint) and "scaled" (the control)."""
    found: dict[str, Any] = {}

    def tuned() -> dict:
        if "tune" not in found:
            found["tune"] = trials.tune(config, folder, say)
        return found["tune"]

    def shift(of: Path) -> Shift:
        if "shift" not in found:
            run = of_run(of)
            found["shift"] = Shift(run.base, run.config)
        return found["shift"]

    def points() -> dict:
        rows = []
        for row in tuned()["rows"]:
            path = where(config, folder, row)
            for step in () if row["error"] else steps_of(path):
                run = of_run(path, step)
                rows.append({name: row[name] for name in ("arm", "rate", "seed")} | {"step": step} | shift(path)(run.model(), run.params))
        return {"base": found["shift"].base, "points": rows}

    def scaled_loras() -> dict:
        rows = []
        for seed in config.tuning_seeds:
            path = where(config, folder, {"arm": LORA, "rate": tuned()["at"][LORA], "seed": seed})
            run = of_run(path)
            rows += [{"seed": seed, "scale": by} | shift(path)(run.model(), scaled(run.params, by)) for by in SCALES]
        return {"points": rows}

    return {"tune": tuned, "points": points, "scaled": scaled_loras}


def where(config: Any, folder: Path, row: Mapping[str, Any]) -> Path:
    """The folder of a run."""
    return (Path(config.runs) if config.runs else folder / "runs") / trials.Trial(row["arm"], row["rate"], row["seed"]).folder


def steps_of(run: Path) -> list[int]:
    """Steps of a run's checkpoints, ascending."""
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())


def scaled(tree: Any, by: float) -> Any:
    """The tree with every LoRA's scale times `by`."""
    if isinstance(tree, LoRA):
        return dataclasses.replace(tree, scale=tree.scale * by, base=scaled(tree.base, by))
    return {name: scaled(part, by) for name, part in tree.items()} if isinstance(tree, dict) else tree


def correlation(points: Sequence[Mapping[str, Any]], draws: int = DRAWS) -> tuple[float, float, float]:
    """(Spearman's correlation of KL and forgetting, 95 % of a bootstrap over runs): checkpoints of a run are drawn together."""
    runs: dict[tuple, list[tuple[float, float]]] = {}
    for one in points:
        runs.setdefault((one["arm"], one["rate"], one["seed"]), []).append((one["kl"], one["forgetting"]))
    each, rng = [np.asarray(one) for one in runs.values()], np.random.default_rng(0)
    drawn = [_spearman(np.concatenate([each[n] for n in rng.integers(len(each), size=len(each))])) for _ in range(draws)]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return _spearman(np.concatenate(each)), float(low), float(high)


def least_forgetting(points: Sequence[Mapping[str, Any]], loss: float) -> float:
    """The least forgetting of points whose loss on the target is at most `loss`; infinity where there is none."""
    return min((one["forgetting"] for one in points if one["target"] <= loss), default=math.inf)


def reached(points: Sequence[Mapping[str, Any]], names: Sequence[str], seed: int) -> float:
    """The lowest loss on the target that a point of every arm reaches with this seed."""
    return max(min(one["target"] for one in points if one["arm"] == name and one["seed"] == seed) for name in names)


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from the points."""
    at, points, base = measured["tune"]["at"], measured["points"]["points"], measured["points"]["base"]
    names, seeds = list(at), sorted({one["seed"] for one in points})
    last = max(one["step"] for one in points)
    ends = {name: [_end(points, name, at[name], seed, last) for seed in seeds] for name in names}
    own = {name: np.asarray([one["forgetting"] for one in found]) for name, found in ends.items()}
    low, high = over_seeds(own[LORA] - own[FULL])
    spearman, s_low, s_high = correlation(points)
    levels = {seed: reached(points, names, seed) for seed in seeds}
    matched = {name: np.asarray([least_forgetting(_of(points, name, seed), levels[seed]) for seed in seeds]) for name in names}
    claims = (
        Claim(f"at own rates {LORA} forgets less than full fine-tuning", "less", _said(own[LORA] - own[FULL]),
              HOLDS if high < 0 else FAILS if low > 0 else OPEN),
        Claim("forgetting follows KL(base || tuned) on the target, all points pooled", f"Spearman >= {LEAST}",
              f"{spearman:.3f} [{s_low:.3f}, {s_high:.3f}] over {len(points)} points", HOLDS if spearman >= LEAST else FAILS),
        *(Claim(f"forgetting of {name} less that of full fine-tuning, at one loss on the target", "nothing asserted",
                _said(matched[name] - matched[FULL]), REPORTED) for name in names if name != FULL),
        Claim(f"control: {LORA} with its scale times 0 is the base, times 1 the checkpoint", "within 1e-6", *_control(measured)),
    )
    return Finding(
        f"{len(seeds)} seeds, {len(points)} checkpoints. The base's loss is {base['test']:.3f} nats a token on the target's test rows and "
        f"{base['general']:.3f} on general text. Arms are matched at {', '.join(f'{levels[seed]:.3f}' for seed in seeds)}.",
        claims, (_table(measured, ends, matched),), _plot(measured),
    )


def _table(measured: Mapping[str, Any], ends: Mapping[str, Sequence[Mapping]], matched: Mapping[str, np.ndarray]) -> Table:
    tune, points = measured["tune"], measured["points"]["points"]
    numbers = {row["arm"]: row["parameters"] for row in tune["rows"] if not row["error"]}
    rows = []
    for name, rate in tune["at"].items():
        target, forgetting, kl = (np.mean([one[what] for one in ends[name]]) for what in ("target", "forgetting", "kl"))
        within = _spearman(np.asarray([(one["kl"], one["forgetting"]) for one in points if one["arm"] == name]))
        rows.append((name, numbers[name], f"{rate:g}" + (" (edge)" if name in tune["edge"] else ""), f"{target:.3f}", f"{forgetting:+.3f}",
                     f"{kl:.3f}", f"{matched[name].mean():+.3f}", f"{within:.3f}"))
    return Table("Arms at rates of their own; forgetting at the matched loss; correlation within the arm", (
        "arm", "numbers trained", "own rate", "target loss", "forgetting", "KL", "forgetting, matched", "Spearman",
    ), rows)


def _plot(measured: Mapping[str, Any]) -> Plot:
    points, base = measured["points"]["points"], measured["points"]["base"]
    series = {}
    for name in measured["tune"]["at"]:
        learnt = [(one["target"], one["forgetting"]) for one in points if one["arm"] == name and one["target"] < base["test"]]
        series[name] = tuple(zip(*learnt, strict=True)) if learnt else ((), ())
    series[f"{LORA}, scaled"] = tuple(zip(*[(one["target"], one["forgetting"]) for one in measured["scaled"]["points"]], strict=True))
    return Plot("Learning and forgetting, every checkpoint that learnt", "loss on the target, nats a token", "forgetting, nats a token",
                series, joined=False)


def _control(measured: Mapping[str, Any]) -> tuple[str, str]:
    rows, base = measured["scaled"]["points"], measured["points"]["base"]
    at, points = measured["tune"]["at"][LORA], measured["points"]["points"]
    off = max(max(abs(one["forgetting"]), one["kl"], abs(one["target"] - base["test"])) for one in rows if one["scale"] == 0)
    last = max(one["step"] for one in points)
    ends = [(one, _end(points, LORA, at, one["seed"], last)) for one in rows if one["scale"] == 1]
    apart = max(abs(a[what] - b[what]) for a, b in ends for what in ("target", "forgetting", "kl"))
    return f"{off:.1e} and {apart:.1e}", HOLDS if max(off, apart) <= 1e-6 else FAILS


def _of(points: Sequence[Mapping[str, Any]], name: str, seed: int) -> list[Mapping[str, Any]]:
    return [one for one in points if one["arm"] == name and one["seed"] == seed]


def _end(points: Sequence[Mapping[str, Any]], name: str, rate: float, seed: int, step: int) -> Mapping[str, Any]:
    return next(one for one in _of(points, name, seed) if one["rate"] == rate and one["step"] == step)


def _spearman(pairs: np.ndarray) -> float:
    return float(stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def _said(differences: np.ndarray) -> str:
    low, high = over_seeds(differences)
    return (f"{differences.mean():+.3f} nats [{low:+.3f}, {high:+.3f}], less in {int((differences < 0).sum())} of {len(differences)} seeds")
