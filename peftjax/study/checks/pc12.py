"""PC12, statistical part: what many runs in one program save (LoRAFusion, 2510.00206, 2025; successive halving, 1502.07943, 2015).

    speed-up = seconds of K solo steps / seconds of one step of K members, in turns; the mean of its logarithm over turns, with t's interval

It is more than twice at 32 tokens a member, and less with more tokens. A halving of many learning rates takes at most two fifths of the
steps that all of them to the end take, which its rungs decide, and finds the rate that they find, which they do not. That members are what
solo runs are is held by the tests of `peftjax.train.population`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from peftjax.interop.base import Base, load_base
from peftjax.peft import lora
from peftjax.study.checks import trials
from peftjax.study.checks.arms import over_seeds
from peftjax.study.checks.finding import FAILS, HOLDS, OPEN, REPORTED, Claim, Finding, Plot, Table
from peftjax.train.bench import begin_compiled
from peftjax.train.bench_population import members, population, stepping
from peftjax.train.logs import read_metrics
from peftjax.train.population import Halving, run_population

ARM, TWICE, SAVED = "LoRA", 2.0, 0.6


def default_config() -> ConfigDict:
    """Fields of trials, and: numbers of members (`counts`) and (lines, tokens of a line) of a member's step (`shapes`) that are timed in
    `turns`; `rungs` and the share kept (`keep`) of the halving of all rates of the grid."""
    config = trials.trials_config("pc12")
    config.counts, config.shapes, config.turns = (2, 8), ((1, 32), (1, 128), (4, 128)), 15
    config.rungs, config.keep = (10, 20, 40), 0.5
    return config


def pieces(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> dict[str, Callable[[], dict]]:
    """One of each number and shape, then "all" rates to the end and "halving"; without seeds the times alone."""
    load = functools.cache(lambda: load_base(config.run.base.uri))
    timed = {f"{count} of {lines}x{length}": functools.partial(speed_up, load, count, lines, length, config.turns)
             for count in config.counts for lines, length in config.shapes}
    if not config.seeds:
        return timed
    return timed | {"all": lambda: train_all(config, folder, say), "halving": lambda: halve(config, folder, say)}


def speed_up(load: Callable[[], Base], count: int, lines: int, length: int, turns: int) -> dict[str, Any]:
    """Seconds of `count` solo steps and of a population's one, in turns, each after the other in every second turn."""
    base = load()
    _, solo, _ = begin_compiled(base, lora(rank=16), lines, length)
    made, base = members(base, count, lines, length)
    together = stepping(population(made), made)
    sides = {"solo": lambda: sum(solo() for _ in range(count)), "together": together}
    for side in sides.values():
        side()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in sorted(sides, reverse=bool(turn % 2)):
            found[name].append(sides[name]())
    return {"members": count, "tokens": lines * length, **found}


def grid(config: ConfigDict) -> list[float]:
    """All rates, ascending."""
    return [trials.rate_at(config, ARM, k) for k in range(-(config.rates // 2), config.rates - config.rates // 2)]


def train_all(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Every rate with every seed to the end: {"rows": [{"seed", "rate", "loss" on validation or None, "steps" taken}]}."""
    asked = [trials.Trial(ARM, rate, seed) for seed in config.seeds for rate in grid(config)]
    done = trials.train(config, asked, folder, say)
    return {"rows": [_row(trial, folder / "runs" / trial.folder, row) for trial, row in zip(asked, done, strict=True)]}


def halve(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The same by halving, a seed at a time; the loss is that of rates that went on to the end."""
    rows = []
    for seed in config.seeds:
        asked = [trials.Trial(ARM, rate, seed) for rate in grid(config)]
        paths = [folder / "halving" / trial.folder for trial in asked]
        halving = Halving(tuple(config.rungs), config.keep)
        run_population([trials.config_of(config, trial) for trial in asked], paths, halving=halving, say=say)
        for trial, path in zip(asked, paths, strict=True):
            rows.append(_row(trial, path, trials.row(trial, path) if (path / "result.json").exists() else {"error": "stopped"}))
    return {"rows": rows}


def _row(trial: trials.Trial, path: Path, row: dict) -> dict[str, Any]:
    steps = sum("grad_norm" in line for line in read_metrics(path))
    return {"seed": trial.seed, "rate": trial.rate, "loss": None if row["error"] else row["validation"], "steps": steps}


def winners(rows: Sequence[dict]) -> dict[int, tuple[float, float]]:
    """Seed -> (rate of the lowest loss, that loss)."""
    best: dict[int, tuple[float, float]] = {}
    for row in rows:
        if row["loss"] is not None and (row["seed"] not in best or row["loss"] < best[row["seed"]][1]):
            best[row["seed"]] = row["rate"], row["loss"]
    return best


def judge(measured: dict[str, dict]) -> Finding:
    """The verdicts from times, and from the rows of a search where there was one."""
    timed = sorted((one for one in measured.values() if "tokens" in one), key=lambda one: (one["members"], one["tokens"]))
    logs = [np.log(np.asarray(one["solo"]) / np.asarray(one["together"])) for one in timed]
    speeds = [tuple(math.exp(x) for x in (log.mean(), *over_seeds(log))) for log in logs]
    claims = _of_times(timed, speeds)
    times = [(one["members"], one["tokens"], f"{1e3 * np.median(one['solo']):.1f}", f"{1e3 * np.median(one['together']):.1f}",
              "{:.2f} [{:.2f}, {:.2f}]".format(*speed)) for one, speed in zip(timed, speeds, strict=True)]
    tables = (Table("Milliseconds, medians of turns", ("members", "tokens each", "solo, in turns", "together", "speed-up, 95 %"), times),)
    if "all" in measured:
        claims += _of_search(measured["all"]["rows"], measured["halving"]["rows"])
        best, found = (winners(measured[name]["rows"]) for name in ("all", "halving"))
        rates = [(seed, f"{best[seed][0]:g}", f"{best[seed][1]:.4f}", f"{found[seed][0]:g}", f"{found[seed][1]:.4f}") for seed in best]
        tables += (Table("Best rates", ("seed", "all", "loss", "halving", "loss"), rates),)
    series = {}
    for count in sorted({one["members"] for one in timed}):
        series[f"{count} members"] = tuple(zip(*[(one["tokens"], *speed) for one, speed in zip(timed, speeds, strict=True)
                                                 if one["members"] == count], strict=True))
    return Finding(
        f"LoRA on all linear layers, of rank 16 for times, {len(timed[0]['solo'])} turns.", claims, tables,
        Plot("Speed-up of members in one program", "tokens of a member's step", "times as fast as alone", series, log_x=True),
    )


def _of_times(timed: Sequence[dict], speeds: Sequence[tuple[float, float, float]]) -> tuple[Claim, ...]:
    most, fewest = max(one["members"] for one in timed), min(one["tokens"] for one in timed)
    of_most = {one["tokens"]: speed for one, speed in zip(timed, speeds, strict=True) if one["members"] == most}
    speed, low, high = of_most[fewest]
    means = [of_most[tokens][0] for tokens in sorted(of_most)]
    return (
        Claim(f"{most} members of {fewest} tokens in one program against {most} runs", f"more than {TWICE:g} times as fast",
              f"{speed:.2f} [{low:.2f}, {high:.2f}]", HOLDS if low > TWICE else FAILS if high < TWICE else OPEN),
        Claim("the speed-up falls with the tokens of a member", "lower with each", ", ".join(f"{mean:.2f}" for mean in means),
              HOLDS if means == sorted(means, reverse=True) else FAILS),
        Claim(f"{most} members of {max(of_most)} tokens", "nothing for this base", "{:.2f} [{:.2f}, {:.2f}]".format(*of_most[max(of_most)]),
              REPORTED),
    )


def _of_search(every: Sequence[dict], some: Sequence[dict]) -> tuple[Claim, ...]:
    saved = 1 - sum(row["steps"] for row in some) / sum(row["steps"] for row in every)
    best, found = winners(every), winners(some)
    same = sum(best[seed][0] == found[seed][0] for seed in best)
    regret = [found[seed][1] - best[seed][1] for seed in best]
    return (
        Claim("steps that a halving saves", f"at least {SAVED:.0%}", f"{saved:.1%}", HOLDS if saved >= SAVED else FAILS),
        Claim("the halving finds the rate that training all of them finds", "in every seed",
              f"in {same} of {len(best)}; its loss on validation is {np.mean(regret):.4f} nats above on average, at most {max(regret):.4f}",
              HOLDS if same == len(best) else FAILS),
    )
