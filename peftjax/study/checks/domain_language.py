"""Domains x languages: language adapters put together with domain adapters against one LoRA per pair, on pairs that no adapter has seen.

    library     per seed a Pfeiffer adapter a language, trained on the other domains, and one a domain, trained on the other languages
    LoRA        one for each pair, trained on its rows
    fusion      AdapterFusion (2005.00247) over the pair's two adapters, which are held, trained on the pair's rows
    fusion of random    the same over copies of these with their numbers in random places: what is left is the fusion's own parameters
    stack, average, language, domain, base      nothing is trained on the pair

LoRA and both fusions get as many trials of the rate, on a grid that grows for all of them while a best one is at an edge; the rate is
chosen for an arm and a number of rows by the mean loss on validation over all pairs, on a seed that is not measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from peftjax.evals.statistics.crossed import Effect, effect
from peftjax.evals.statistics.differences import by_group
from peftjax.evals.statistics.equivalence import BETTER, tost
from peftjax.evals.statistics.holm import holm
from peftjax.interop.base import load_base
from peftjax.interop.json_file import read_json
from peftjax.peft import lora, pfeiffer
from peftjax.study import rates
from peftjax.study.checks import composed, pairs
from peftjax.study.checks.arms import word
from peftjax.study.checks.composed import AVERAGE, BASE, STACK, loss_of
from peftjax.study.checks.finding import FAILS, HOLDS, OPEN, REPORTED, Claim, Finding, Plot, Table
from peftjax.study.checks.library import adapters, train_library
from peftjax.study.checks.pairs import DOMAIN, FUSION, LANGUAGE, LORA, RANDOM, PairRun
from peftjax.study.checks.trials import do, row, trials_config
from peftjax.train.config import methods

TRAINED, UNTRAINED = (LORA, FUSION, RANDOM), (BASE, LANGUAGE, DOMAIN, STACK, AVERAGE)
REGION = 0.02  # of LoRA's loss: what counts as no difference


def default_config() -> ConfigDict:
    """All fields: the `pairs` (domain, language), what all `run`s share, the `library`'s methods, steps and rate, the methods of the
    `lora` of a pair, how many rows of a pair are trained on (`sizes`), the grid of rates as of `peftjax.study.rates`, and seeds."""
    return ConfigDict({
        "check": "domain_language", "run": trials_config("domain_language").run, "pairs": (),
        "library": {"peft": methods(pfeiffer(size=16)), "steps": 120, "rate": 1e-2}, "lora": methods(lora(rank=8)),
        "sizes": (16, 128), "centre": 1e-2, "rates": 3, "factor": 10**0.5, "rounds": 2, "tuning_seed": 100, "seeds": (0, 1, 2),
    })


def pieces(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> dict[str, Callable[[], Any]]:
    """The library, what it does without training, the search of rates, and the runs at these."""
    def base():
        return load_base(config.run.base.uri, dtype="float32")

    def tuned() -> dict[str, Any]:
        return read_json(folder / "measured" / "tune.json")["data"]

    return {
        "library": lambda: train_library(config, (config.tuning_seed, *config.seeds), folder, base(), say),
        "untrained": lambda: composed.measure(config, folder, base(), say),
        "tune": lambda: tune(config, folder, say),
        "measure": lambda: train(config, [
            PairRun(arm, size, pair, tuned()["at"][f"{arm}, {size}"], seed) for size in config.sizes for arm in TRAINED
            for pair in pairs.pairs(config) for seed in config.seeds
        ], folder, say),
    }


def train(config: ConfigDict, wanted: Sequence[PairRun], folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Does what is left of these runs; a row of each."""
    runs = [folder / "pairs" / one.folder for one in wanted]
    do([pairs.pair_config(config, one, adapters(folder, one.seed)) for one in wanted], runs, say)
    rows = []
    for one, run in zip(wanted, runs, strict=True):
        found = row(one, run)
        found.pop("losses", None)
        rows.append(found | {"size": one.size, "pair": str(one.pair)})
    return rows


def tune(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """"at": "arm, size" -> rate; "scores": the mean losses on validation by rate; "edge": those whose best rate is the last one tried."""
    def at(k: int) -> float:
        return rates.rate(config.centre, config.factor, k)

    all_pairs, seed = pairs.pairs(config), config.tuning_seed
    steps = {(arm, size): rates.first(config.rates) for size in config.sizes for arm in TRAINED}
    for turn in range(config.rounds + 1):
        wanted = [PairRun(arm, size, pair, at(k), seed) for (arm, size), ks in steps.items() for k in ks for pair in all_pairs]
        rows = train(config, wanted, folder, say)
        found = {one: math.inf if left["error"] else left["validation"] for one, left in zip(wanted, rows, strict=True)}
        scores = {
            (arm, size): {k: float(np.mean([found[PairRun(arm, size, pair, at(k), seed)] for pair in all_pairs])) for k in ks}
            for (arm, size), ks in steps.items()
        }
        at_edge = {size for (_, size), of in scores.items() if rates.edge(of)}
        if not at_edge or turn == config.rounds:
            break
        steps = {key: ks + rates.further(scores[key], 1) if key[1] in at_edge else ks for key, ks in steps.items()}
    named = {f"{arm}, {size}": of for (arm, size), of in scores.items()}
    chosen = {name: rates.best(of) for name, of in named.items()}
    if none := [name for name, k in chosen.items() if k is None]:
        raise ValueError(f"every rate that was tried diverged for {', '.join(none)}; lower config.centre, which is {config.centre}")
    return {
        "at": {name: at(k) for name, k in chosen.items()}, "edge": [name for name, of in named.items() if rates.edge(of)],
        "scores": {name: {f"{at(k):g}": score for k, score in sorted(of.items())} for name, of in named.items()},
    }


class Comparison(NamedTuple):
    """Of two arms: effect in nats a token, negative where the first is better, corrected p-values, a word, and in how many
    pairs of how many the first one's mean is the lower."""

    a: str
    b: str
    effect: Effect
    p: float
    p_equivalent: float
    word: str
    lower: int
    pairs: int


Arms = Mapping[str, Sequence[Mapping[str, Any]]]  # the rows of each arm, one a pair and seed


def arms_of(measured: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of every arm; those that were trained are named with their number of rows."""
    found: dict[str, list] = {}
    for one in measured["untrained"]["rows"]:
        found.setdefault(one["arm"], []).append(one)
    for one in measured["measure"]:
        found.setdefault(f"{one['arm']}, {one['size']}", []).append(one)
    return found


def differences(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, list[str], dict[str, float]]:
    """(d [S, N] over the test items of all pairs, in nats a token and with equal weight for each pair; groups of the items; mean by pair).

    Raises:
        ValueError: the arms do not have the same pairs, seeds and items.
    """
    ours, theirs = ({(one["pair"], one["seed"]): one for one in rows if not one.get("error")} for rows in (a, b))
    seeds, names = sorted({seed for _, seed in ours}), list(dict.fromkeys(one["pair"] for one in a))
    if ours.keys() != theirs.keys() or len(ours) < len(seeds) * len(names):
        raise ValueError("a comparison needs the same pairs and seeds of both arms; some runs diverged or were not done")
    if any(ours[key]["ids"] != theirs[key]["ids"] for key in ours):
        raise ValueError("a comparison needs the same test items of both arms")
    parts, groups, by_pair = [], [], {}
    total = sum(len(ours[name, seeds[0]]["ids"]) for name in names)
    for name in names:
        first = ours[name, seeds[0]]
        d = np.asarray([np.subtract(ours[name, s]["nll"], theirs[name, s]["nll"]) for s in seeds]) / np.mean(first["tokens"])
        parts.append(d * (total / (len(names) * len(first["ids"]))))
        groups += first["groups"]
        by_pair[name] = float(d.mean())
    return np.concatenate(parts, axis=1), groups, by_pair


def compare(arms: Arms, wanted: Sequence[tuple[str, str]], region: float) -> list[Comparison]:
    """Each of these, corrected by Holm over all of them; `region` in nats a token is what counts as no difference."""
    found = [differences(arms[a], arms[b]) for a, b in wanted]
    effects = [effect(by_group(d, groups)) for d, groups, _ in found]
    p_values, equivalent = holm([one.p() for one in effects]), holm([tost(one, region) for one in effects])
    return [
        Comparison(a, b, one, p, q, word(one, p, q), sum(v < 0 for v in by.values()), len(by))
        for (a, b), one, p, q, (_, _, by) in zip(wanted, effects, p_values, equivalent, found, strict=True)
    ]


def judge(measured: dict[str, Any]) -> Finding:
    """The verdicts from the library, the compositions, and the runs."""
    arms, tuned = arms_of(measured), measured["tune"]
    sizes = list(dict.fromkeys(one["size"] for one in measured["measure"]))
    few, many = min(sizes), max(sizes)
    wanted = [(f"{a}, {size}", f"{b}, {size}" if b in TRAINED else b) for size in sizes
              for a, b in ((FUSION, LORA), (FUSION, RANDOM), (RANDOM, LORA), (LORA, STACK), (FUSION, DOMAIN), (LORA, DOMAIN))]
    wanted += [(STACK, BASE), (AVERAGE, BASE), (STACK, AVERAGE), (STACK, DOMAIN)]
    region = REGION * float(np.mean([loss_of(one) for one in arms[f"{LORA}, {many}"]]))
    found = {(one.a, one.b): one for one in compare(arms, wanted, region)}

    def claim(a: str, b: str, predicted: str | None) -> Claim:
        one = found[a, b]
        low, high = one.effect.interval()
        said = f"{one.effect.mean:+.3f} [{low:+.3f}, {high:+.3f}], lower in {one.lower} of {one.pairs} pairs, p {one.p:.2g}: {one.word}"
        verdict = REPORTED if predicted is None else HOLDS if one.word == BETTER else OPEN if one.word == OPEN else FAILS
        return Claim(f"{a} - {b}", predicted or "", said, verdict)

    claims = (
        claim(f"{FUSION}, {few}", f"{LORA}, {few}", "lower loss, interval without 0"),
        *(claim(f"{FUSION}, {size}", f"{LORA}, {size}", None) for size in sizes if size != few),
        *(claim(f"{FUSION}, {size}", f"{RANDOM}, {size}", "lower loss, interval without 0") for size in sizes),
        claim(STACK, BASE, "lower loss, interval without 0"),
    )
    told = {one.what for one in claims}
    others = tuple(claim(a, b, None) for a, b in wanted if f"{a} - {b}" not in told)
    names = list(dict.fromkeys(one["pair"] for one in arms[BASE]))
    trains = {one["arm"]: one["parameters"] for one in measured["measure"] if not one["error"]}
    table = []
    for arm, rows in arms.items():
        losses = {name: np.mean([loss_of(one) for one in rows if one["pair"] == name and not one.get("error")]) for name in names}
        rate = f"{tuned['at'][arm]:g}{' (edge)' if arm in tuned['edge'] else ''}" if arm in tuned["at"] else ""
        table.append((arm, trains.get(arm.rpartition(", ")[0], 0), rate, *(f"{losses[name]:.3f}" for name in names),
                      f"{np.mean(list(losses.values())):.3f}"))
    seeds = len({one["seed"] for one in arms[BASE]})
    groups = len(set().union(*(one["groups"] for one in arms[BASE])))
    items = sum(len(one["ids"]) for one in arms[BASE]) // seeds
    setting = (f"{len(names)} pairs ({', '.join(names)}), {seeds} seeds with a library each, {items} test items in {groups} groups; loss "
               f"in nats a token, each pair counts alike; what counts as no difference is {region:.3f}. A library's adapter holds "
               f"{measured['library'][0]['size']} numbers; there are {2 * len(names)} of them, and their training is not in the table.")
    return Finding(setting, claims + others, (
        Table("Loss on the pair's test rows", ("arm, rows", "newly trained", "rate", *names, "mean"), table),
        Table("Interference: loss on an adapter's own test rows", ("adapter", BASE, "alone", STACK, AVERAGE), _own(measured)),
        Table("Tuning: mean loss on validation by rate", ("arm, rows", "rate: loss"), [
            (name, ", ".join(f"{rate}: {loss:.3f}" for rate, loss in of.items())) for name, of in tuned["scores"].items()]),
    ), _plot(arms, names, sizes))


def _own(measured: Mapping[str, Any]) -> list[tuple]:
    """Means over pairs and seeds for language adapters and for domain adapters."""
    rows = []
    for part in (LANGUAGE, DOMAIN):
        of = [one for one in measured["untrained"]["own"] if one["adapter"] == part]
        rows.append((part, *(f"{np.mean([one[form] for one in of]):.3f}" for form in (BASE, "alone", STACK, AVERAGE))))
    return rows


def _plot(arms: Arms, names: Sequence[str], sizes: Sequence[int]) -> Plot:
    """Mean loss by number of rows, with the range over seeds; what was not trained on the pair is a level line."""
    series = {}
    for arm in (*TRAINED, *UNTRAINED):
        points = [_of_seeds(arms[f"{arm}, {size}" if arm in TRAINED else arm]) for size in sizes]
        mean, low, high = zip(*points, strict=True)
        series[arm] = (sizes, mean, low, high) if arm in TRAINED else (sizes, mean)
    title = f"Loss on {len(names)} held-out pairs, mean and range of seeds"
    return Plot(title, "rows of the pair", "loss, nats a token", series, log_x=True)


def _of_seeds(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    of = [np.mean([loss_of(one) for one in rows if one["seed"] == seed and not one.get("error")]) for seed in {o["seed"] for o in rows}]
    return float(np.mean(of)), float(min(of)), float(max(of))
