"""A study from its config to its report. The work directory is the study: the same command starts it, goes on with it, or finds it done.

    plan      the size of each method that meets each budget, kept in treatments/
    tune      rates on validation, in rounds, until the best of each is not at an edge
    measure   the seeds at those rates, on test
    costs     what each method costs at that size; `time_costs` takes them alone, at a quiet hour
    report    tables/, report.md, report.html
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.files import locked
from peftjax.interop.base import Base, load_base
from peftjax.peft.partition import size
from peftjax.study.cells import Cell, Treatment, cells, run_config
from peftjax.study.collect import outcome, trial
from peftjax.study.combine import combined
from peftjax.study.config import check, plain_study
from peftjax.study.costs import costs_of
from peftjax.study.execute import Job, execute
from peftjax.study.fair import mean_scores
from peftjax.study.plan import treatments_of
from peftjax.study.rates import best, edge, first, further, rate
from peftjax.study.report import write_report
from peftjax.study.tables import Tables
from peftjax.train.startup import precision, use_compilation_cache
from peftjax.train.versions import versions

Treatments = dict[tuple[str, str], Treatment]
Tried = dict[Cell, list[dict[str, Any]]]
COSTS = "costs"  # folder of what was timed


def conduct(study: ConfigDict, workdir: str | Path, say: Callable[[str], None] = print) -> Path:
    """Does what is left of a study; the path of its report.

    Raises:
        ValueError: anything in the config, the data or the base that does not fit; a budget that no size meets.
    """
    check(study)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    use_compilation_cache()
    with locked(workdir / ".lock"):
        base = base_for(study)
        treatments = treatments_of(study, base, workdir, say)
        tried = tune(study, treatments, base, workdir, say)
        chosen = {cell: chosen_rate(study, trials) for cell, trials in tried.items()}
        execute([
            Job(run_config(study, treatments[cell.method, cell.budget], cell, chosen[cell], seed, tuning=False),
                workdir / cell.folder(chosen[cell], seed, tuning=False))
            for cell in tried for seed in study.seeds if chosen[cell] is not None
        ], base, say=say)
        tables = gathered(study, plan_of(study, base, treatments, workdir, say), tried, chosen, workdir)
        report = _reported(tables, workdir, say)
        if study.combine:
            tables.items.extend(combined(study, base, tables.runs, workdir, say))
            report = _reported(tables, workdir, say)
        for run in tables.runs:
            if run["error"]:
                say(f"failed: {run['data']}, {run['budget']}, {run['method']}, seed {run['seed']}: {run['error']}")
    return report


def time_costs(study: ConfigDict, workdir: str | Path, say: Callable[[str], None] = print) -> None:
    """Measures what methods cost, and keeps it for `conduct`, which may be at work meanwhile or come later. Errors as there."""
    check(study)
    use_compilation_cache()
    base = base_for(study)
    treatments = treatments_of(study, base, workdir, say)
    costs_of(study, base, list(treatments.values()), Path(workdir) / COSTS, say)


def base_for(study: ConfigDict) -> Base:
    """The base of all runs."""
    return load_base(study.run.base.uri, dtype=precision(study.run.base.dtype).name, quantise=study.run.base.quantise)


def _reported(tables: Tables, workdir: Path, say: Callable[[str], None]) -> Path:
    tables.write(workdir)
    report = write_report(workdir)
    say(f"report: {report}")
    return report


def plan_of(study: ConfigDict, base: Base, treatments: Treatments, workdir: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The content of plan.json."""
    costs = costs_of(study, base, list(treatments.values()), workdir / COSTS, say)
    return {
        "study": plain_study(study), "base": base_of(base), "versions": versions(),
        "treatments": [vars(one) for one in treatments.values()], "costs": costs,
    }


def base_of(base: Base) -> dict[str, Any]:
    """What the report says of the base."""
    count, nbytes = size(base.params)
    return {"uri": base.uri, "fingerprint": base.fingerprint, "parameters": count, "bytes": nbytes}


def tune(study: ConfigDict, treatments: Treatments, base: Base, workdir: Path, say: Callable[[str], None]) -> Tried:
    """All trials of each cell. See `peftjax.study.rates`."""
    steps: dict[Cell, list[int]] = {cell: first(study.tuning.rates) for cell in cells(study)}
    for number in range(study.tuning.rounds + 1):
        execute([job for cell in steps for job in trial_jobs(study, treatments, cell, steps[cell], workdir)], base, say=say)
        tried = {cell: trials_of(study, cell, ks, workdir) for cell, ks in steps.items()}
        scores = {cell: mean_scores(trials) for cell, trials in tried.items()}
        at_edge = {cell.comparison for cell in steps if edge(scores[cell])}
        if not at_edge or number == study.tuning.rounds:
            return tried
        say(f"tuning: the best rate lies at an edge in {len(at_edge)} of {len({cell.comparison for cell in steps})} comparisons; "
            f"{study.tuning.more} more for their methods")
        for cell in steps:
            if cell.comparison in at_edge:
                steps[cell] = steps[cell] + further(scores[cell], study.tuning.more)
    raise AssertionError("the last round returns")


def trial_jobs(study: ConfigDict, treatments: Treatments, cell: Cell, ks: Sequence[int], workdir: Path) -> list[Job]:
    """The trials of a cell."""
    found = []
    for k in ks:
        value = rate(study.tuning.centre, study.tuning.factor, k)
        for seed in study.tuning.seeds:
            config = run_config(study, treatments[cell.method, cell.budget], cell, value, seed, tuning=True)
            found.append(Job(config, workdir / cell.folder(value, seed, tuning=True)))
    return found


def trials_of(study: ConfigDict, cell: Cell, ks: Sequence[int], workdir: Path) -> list[dict[str, Any]]:
    """Rows of the trials of a cell, all of which were run."""
    rows = []
    for k in ks:
        value = rate(study.tuning.centre, study.tuning.factor, k)
        for seed in study.tuning.seeds:
            rows.append(trial(workdir / cell.folder(value, seed, tuning=True), cell, k, value, seed, study.tuning.measure))
    return rows


def chosen_rate(study: ConfigDict, trials: Sequence[dict[str, Any]]) -> float | None:
    """The rate with the best mean score on validation; None where all diverged."""
    k = best(mean_scores(trials))
    return None if k is None else rate(study.tuning.centre, study.tuning.factor, k)


def gathered(study: ConfigDict, plan: dict, tried: Tried, chosen: dict[Cell, float | None], workdir: Path) -> Tables:
    """All tables, from the folders of the runs."""
    runs, items = [], []
    for cell, value in chosen.items():
        if value is None:
            runs += [{"data": cell.data, "budget": cell.budget, "size": cell.size, "method": cell.method, "rate": None, "seed": seed,
                      "error": "every learning rate that was tried diverged"} for seed in study.seeds]
            continue
        for seed in study.seeds:
            row, found = outcome(workdir / cell.folder(value, seed, tuning=False), cell, value, seed)
            runs.append(row)
            items += found
    return Tables(plan, [row for rows in tried.values() for row in rows], runs, items)
