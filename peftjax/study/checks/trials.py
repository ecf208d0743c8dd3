"""Runs of a check: arms x learning rates x seeds, trained together in one program where they can be, and what they left as plain rows.

    tune       every arm at every rate of its grid, on the tuning seeds; the grid of an arm whose best rate is at its end grows there
    measure    every arm at its own best rate, and where asked at another arm's, on the seeds

The rate is chosen by the loss on validation alone; what is told is the loss on test. Checks that name one folder of runs share those of
arms that have the same name and settings.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from peftjax.study.rates import edge, further
from peftjax.train.config import default_config, methods
from peftjax.train.logs import read_metrics
from peftjax.train.points import with_point
from peftjax.train.population import programs, run_population


class Trial(NamedTuple):
    """One run: an arm's name, its learning rate, and the seed of data order and initial values."""

    arm: str
    rate: float
    seed: int

    @property
    def folder(self) -> str:
        """Of the run."""
        return f"{self.arm}-lr{self.rate:g}-seed{self.seed}".replace(" ", "_").replace("/", "_")


def trials_config(check: str) -> ConfigDict:
    """All fields: what the `run`s share and the folder that they are in ("" is the check's own); the `arms`, name -> `arm(...)`; the
    `centre` of the grid of rates, and in `starts` by how many steps that of single arms is off it; the grid's number of `rates`, the
    `factor` between them, and how often it grows (`rounds`); seeds; an arm whose rate all others are measured at too (`at_rate_of`), or
    "" for none."""
    run = default_config()
    run.eval.before, run.eval.generate, run.eval.metrics, run.eval.rows = False, False, (), 0
    run.eval.at_end = ("validation", "test")
    run.eval.general.name = ""
    run.optimizer.schedule, run.optimizer.warmup = "constant", 0
    run.checkpoint.every, run.checkpoint.keep_newest, run.checkpoint.best = 1_000_000, 1, False
    run.log.tensorboard = False
    return ConfigDict({
        "check": check, "run": run, "runs": "", "arms": {}, "starts": {}, "centre": 3e-3, "rates": 5, "factor": 10**0.5, "rounds": 2,
        "tuning_seeds": (100,), "seeds": (0, 1, 2, 3, 4), "at_rate_of": "",
    })


def arm(*specifications: Any, fields: Mapping[str, Any] | None = None) -> ConfigDict:
    """An arm: methods, and dotted fields of the run that it has of its own."""
    return ConfigDict({"peft": methods(*specifications), "fields": tuple((fields or {}).items())})


def config_of(config: ConfigDict, trial: Trial) -> ConfigDict:
    """The run's config."""
    run = config.run.copy_and_resolve_references()
    own = config.arms[trial.arm]
    run.peft = [ConfigDict(method.to_dict()) for method in own.peft]
    return with_point(run, {**dict(own.fields), "optimizer.learning_rate": trial.rate, "train.seed": trial.seed})


def pieces(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> dict[str, Callable[[], dict]]:
    """"tune" and "measure": {"rows": [...], "at": arm -> chosen rate, "edge": arms whose best rate is at the end of their grid}."""
    found: dict[str, dict] = {}

    def tuned() -> dict:
        if "tune" not in found:
            found["tune"] = tune(config, folder, say)
        return found["tune"]

    def measured() -> dict:
        at = tuned()["at"]
        wanted = {Trial(name, rate, seed) for name, rate in at.items() for seed in config.seeds}
        if config.at_rate_of:
            wanted |= {Trial(name, at[config.at_rate_of], seed) for name in at for seed in config.seeds}
        return {"rows": train(config, sorted(wanted), folder, say), "at": at}

    return {"tune": tuned, "measure": measured}


def tune(config: ConfigDict, folder: Path, say: Callable[[str], None]) -> dict:
    """The search of each arm's rate."""
    grids = {name: list(range(-(config.rates // 2), config.rates - config.rates // 2)) for name in config.arms}
    rows: list[dict] = []
    for turn in range(config.rounds + 1):
        rate = {name: {k: rate_at(config, name, k) for k in ks} for name, ks in grids.items()}
        wanted = [Trial(name, value, seed) for name, ks in rate.items() for value in ks.values() for seed in config.tuning_seeds]
        rows = train(config, wanted, folder, say)
        by_step = {name: {k: scores_of(rows, name)[value] for k, value in ks.items()} for name, ks in rate.items()}
        at_edge = [name for name, scores in by_step.items() if edge(scores)]
        if not at_edge or turn == config.rounds:
            break
        for name in at_edge:
            grids[name] = sorted([*grids[name], *further(by_step[name], 2)])
    scores = {name: scores_of(rows, name) for name in grids}
    return {"rows": rows, "at": {name: min(found, key=lambda r: found[r]) for name, found in scores.items()}, "edge": at_edge}


def rate_at(config: ConfigDict, name: str, k: int) -> float:
    """The rate of step `k` of an arm's grid, to three digits."""
    return float(f"{config.centre * config.factor ** (k + config.starts.get(name, 0)):.3g}")


def scores_of(rows: Iterable[Mapping[str, Any]], name: str) -> dict[float, float]:
    """Rate -> mean loss on validation over the seeds; infinity where a run diverged."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["arm"] == name:
            found.setdefault(row["rate"], []).append(math.inf if row["error"] else row["validation"])
    return {rate: float(np.mean(losses)) for rate, losses in sorted(found.items())}


def train(config: ConfigDict, trials: Sequence[Trial], folder: Path, say: Callable[[str], None]) -> list[dict]:
    """Does what is left of these trials; their rows, in their order."""
    configs = [config_of(config, trial) for trial in trials]
    folders = [(Path(config.runs) if config.runs else folder / "runs") / trial.folder for trial in trials]
    do(configs, folders, say)
    return [row(trial, path) for trial, path in zip(trials, folders, strict=True)]


def do(configs: Sequence[ConfigDict], folders: Sequence[Path], say: Callable[[str], None]) -> None:
    """Trains what is left of these runs, together where they can be."""
    left = [n for n, path in enumerate(folders) if not (path / "result.json").exists() and not (path / "failed.json").exists()]
    say(f"{len(left)} of {len(folders)} runs to do")
    for group in programs([configs[n] for n in left]):
        numbers = [left[n] for n in group]
        run_population([configs[n] for n in numbers], [folders[n] for n in numbers], say=say)


def row(trial: Trial, folder: Path) -> dict[str, Any]:
    """What a run left: losses of its steps, of validation and test (nats a token), the test's items with their groups, how many numbers it
    trained, or its error."""
    found: dict[str, Any] = {"arm": trial.arm, "rate": trial.rate, "seed": trial.seed, "error": None}
    failed = folder / "failed.json"
    if failed.exists():
        return found | {"error": json.loads(failed.read_text())["error"]}
    result = json.loads((folder / "result.json").read_text())
    last = {one["split"]: one for one in result["evaluations"]}
    items = {}
    for file in sorted((folder / "evaluations").glob("*.json")):
        evaluation = json.loads(file.read_text())
        if evaluation["split"] == "test":
            items = {item["id"]: (item["nll"], item["tokens"], item.get("group", item["id"])) for item in evaluation["predictions"]}
    names = sorted(items)
    return found | {
        "losses": [line["loss"] for line in read_metrics(folder) if "grad_norm" in line],
        "validation": last["validation"]["validation_loss"], "test": last["test"]["test_loss"],
        "ids": names, "nll": [round(items[name][0], 6) for name in names], "tokens": [items[name][1] for name in names],
        "groups": [items[name][2] for name in names], "forgetting": last["test"].get("forgetting"),
        "parameters": result["trainable"]["parameters"],
    }
