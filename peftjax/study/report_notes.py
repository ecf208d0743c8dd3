"""What a study's report says beside its tables: what was studied, what the columns mean, how it was done."""

import itertools
from typing import Any

from peftjax.study.compare import comparisons
from peftjax.study.measure import measure_of
from peftjax.study.tables import Tables
from peftjax.study.words import counted


def what(tables: Tables) -> str:
    """Methods, budgets, data, seeds and base in a paragraph."""
    study, base = tables.plan["study"], tables.plan["base"]
    amounts = {name: " ".join(f"{value:,g} {unit}" for unit, value in budget.items()) for name, budget in study["budgets"].items()}
    named = "; ".join(f"{name}: {amount}" for name, amount in amounts.items())
    return (
        f"{counted(len(study['methods']), 'method')} at {counted(len(amounts), 'budget')} ({named}) "
        f"on {', '.join(study['data'])}, {len(study['seeds'])} seeds each. Base: `{base['uri']}`, {base['parameters']:,} parameters."
    )


def of_standings() -> str:
    """Below the table of quality."""
    return (
        "In brackets: intervals over seeds and items. Methods that share a letter are not told apart. Loss and forgetting are in nats a "
        "token; forgetting is the change of the loss on general text against the untouched base."
    )


def of_pairs(study: dict[str, Any]) -> str:
    """Below the table of pairs."""
    show = measure_of(study)
    return (
        f"Effect: mean difference with the {100 * (1 - study['level']):g} % interval of crossed effects of seeds and groups "
        "of items; bootstrap: both drawn anew. p: of no difference, after Holm's correction over all pairs of this table. signs: sign-flip "
        "test over groups of items, uncorrected, for these very seeds. TOST: of a difference beyond "
        f"±{show.factor * study['region']:g} {show.unit}, corrected likewise; at most {study['level']:g} means that there is none. "
        "Few seeds say little of others: with three, an effect among six pairs may have to be eleven standard errors to be told from "
        "chance, with five some five."
    )


def of_together() -> str:
    """Below the table of interference."""
    return (
        "Averaged: the adapters of all data sets, of the same method, budget and seed, act together as the mean of what they do. Change: "
        "against the data set's own adapter, with the interval over seeds and groups of items, not corrected."
    )


def of_costs(found: dict[str, Any]) -> str:
    """Below the table of costs."""
    load = ", ".join(f"{one:.1f}" for one in found.get("load", []))
    return (
        "A step of training on dense rows, median and quartiles; memory that the compiled step holds beside base and data; latency over "
        "the base's own, with intervals." + (f" Processes that wanted to run, means of the minute before, after: {load}." if load else "")
    )


def how(tables: Tables) -> list[str]:
    """The protocol, with the numbers of this study."""
    study = tables.plan["study"]
    search = study["tuning"]
    cells: dict[tuple, set] = {}
    for trial in tables.trials:
        cells.setdefault((trial["data"], trial["budget"], trial["size"], trial["method"]), set()).add(trial["rate"])
    counts = " or ".join(map(str, sorted({len(rates) for rates in cells.values()})))
    deviation = max((abs(one["deviation"]) for one in tables.plan["treatments"]), default=0.0)
    tuned, measured = (", ".join(map(str, seeds)) for seeds in (search["seeds"], study["seeds"]))
    return [
        f"Budgets are met within {100 * deviation:.1f} %.",
        f"Learning rates: {counts} trials a cell on a grid with factor {search['factor']:.3g}, seed {tuned}, by {search['measure']} on "
        "validation; as many for every method of a comparison, and an optimum between two worse ones asked of each.",
        f"Then seeds {measured} (data order and initial values, the same for all methods), measured once on test.",
        f"{counted(len(comparisons(study)), 'comparison')}; every number here is made again from `tables/` by the same command with "
        "`--report_only`.",
    ]


def made_from(plan: dict[str, Any]) -> str:
    """Versions, and the base by its fingerprint."""
    lines = itertools.chain(plan["versions"].items(), [("base", plan["base"]["fingerprint"])])
    return "\n".join(f"{name} {version}" for name, version in lines)
