"""Hyper-parameter search by Optuna (the extra `optuna`): trials are points of a sweep, asked for and told in batches.

    def search():                                     # in a config file, beside get_config()
        return {"optimizer.learning_rate": log_uniform(1e-4, 3e-2), "peft[0].rank": choice(4, 8, 16)}

    study.journal      the study, in the sweep's folder: the same command goes on with it

A batch is launched like any sweep, so that by populations it is one program. What successive halving stopped is told as pruned at its last
rung, what diverged as pruned with the worst value there is, and what failed otherwise as failed. The sampler is Optuna's TPE (Bergstra et
al., 2011), seeded with the number of the batch: an interrupted search asks for what it would have asked for.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.train.ending import Outcome
from peftjax.train.points import Point, Range
from peftjax.train.sweep.launch import Launcher, launch
from peftjax.train.sweep.score import LOWER, require_metric, score

JOURNAL = "study.journal"
DIVERGED = "training has diverged"  # in the error of a loss that is not finite


def search(
    config: ConfigDict, ranges: Mapping[str, Range], folder: str | Path, launcher: Launcher, *, trials: int, batch: int,
    metric: str = "loss", seed: int = 0, say: Callable[[str], None] = print, **options: Any,
) -> Any:
    """The Optuna study after `trials` trials, of which those of an earlier command count; `best_point` reads it.

    Args:
        config: the points are set on it.
        ranges: a field of the config -> what it is drawn from.
        folder: of the sweep and the study.
        launcher: as of `launch`, which is given the `options` too.
        trials: in all.
        batch: trials asked for at once.
        metric: on validation rows.
        seed: of the sampler.
        say: is told how far the search is.

    Raises:
        ModuleNotFoundError: optuna is not installed.
        ValueError: no such metric, or a study of other ranges or of another metric in the folder.
    """
    require_metric(metric)
    if trials < 1 or batch < 1:
        raise ValueError(f"a search needs trials and a batch of at least 1; found {trials} and {batch}")
    optuna = _optuna()
    study = _study(optuna, Path(folder), ranges, metric)
    running, state = optuna.trial.TrialState.RUNNING, optuna.trial.TrialState
    while True:
        begun = [trial for trial in study.trials if trial.state == running]  # asked for by a command that was interrupted
        done = len(study.trials) - len(begun)
        if not begun:
            if done >= trials:
                break
            study.sampler = optuna.samplers.TPESampler(seed=seed + done, n_startup_trials=max(batch, 4), multivariate=True)
            asked = [study.ask(_distributions(optuna, ranges)).number for _ in range(min(batch, trials - done))]
            begun = [study.trials[number] for number in asked]
        points = [point_of(trial.params, ranges) for trial in begun]
        say(f"trials {begun[0].number} to {begun[-1].number} of {trials}")
        outcomes = launch(config, points, folder, launcher, say=say, **options)
        for trial, point, outcome in zip(begun, points, outcomes, strict=True):
            _tell(study, state, trial, outcome, score(point, outcome.folder, metric), math.inf if metric in LOWER else -math.inf)
    return study


def best_point(study: Any, ranges: Mapping[str, Range]) -> Point:
    """The point of the best trial.

    Raises:
        ValueError: no trial was finished.
    """
    return point_of(study.best_trial.params, ranges)


def point_of(params: Mapping[str, Any], ranges: Mapping[str, Range]) -> Point:
    """A trial's parameters as a point: of a choice Optuna holds the number, as the values may be anything."""
    return {field: ranges[field].values[value] if ranges[field].values else value for field, value in params.items()}


def _tell(study: Any, state: Any, trial: Any, outcome: Outcome, found: Any, worst: float) -> None:
    """One trial's end. Intermediate values can be given to a live trial alone, and one of an earlier process is live no more: it is
    opened again by its id."""
    import optuna

    live = optuna.trial.Trial(study, trial._trial_id)
    if outcome.status == "done" and found.value is not None:
        study.tell(trial.number, found.value)
    elif outcome.status == "stopped":
        live.report(worst if found.value is None else found.value, found.step or 0)
        study.tell(trial.number, state=state.PRUNED)
    elif outcome.status == "failed" and DIVERGED in (outcome.error or ""):
        live.report(worst, 0)
        study.tell(trial.number, state=state.PRUNED)
    elif outcome.status == "failed":
        study.tell(trial.number, state=state.FAIL)
    else:
        raise ValueError(f"{outcome.folder} is {outcome.status}, without a value of a metric on validation rows: the config must measure "
                         "it (config.eval.at_end, config.eval.every, config.eval.metrics), and the launcher must wait for its end")


def _study(optuna: Any, folder: Path, ranges: Mapping[str, Range], metric: str) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))), study_name="sweep", load_if_exists=True,
        direction="minimize" if metric in LOWER else "maximize",
    )
    asked = {"metric": metric, "ranges": json.dumps({field: repr(one) for field, one in ranges.items()})}
    there = study.user_attrs
    if there and any(there.get(name) != value for name, value in asked.items()):
        raise ValueError(f"{folder} holds a search by {there['metric']} over {there['ranges']}; asked for is one by {metric} over "
                         f"{asked['ranges']}. Name another --folder")
    for name, value in asked.items():
        study.set_user_attr(name, value)
    return study


def _distributions(optuna: Any, ranges: Mapping[str, Range]) -> dict[str, Any]:
    kinds = optuna.distributions
    return {
        field: kinds.CategoricalDistribution(range(len(one.values))) if one.values
        else kinds.IntDistribution(int(one.low), int(one.high)) if one.whole
        else kinds.FloatDistribution(one.low, one.high, log=one.log)
        for field, one in ranges.items()
    }


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a search needs Optuna: pip install 'peftjax[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
