"""The tables of a study's report."""

from typing import Any

from peftjax.study.blocks import Table
from peftjax.study.compare import Analysis
from peftjax.study.measure import PERCENT
from peftjax.study.tables import Tables

SHOWN = ("rank", "size", "sites", "activation", "reads", "targets", "layers")  # of a method, beside its name


def standings(tables: Tables, analysis: Analysis) -> Table:
    """Quality of each cell, its seeds, loss and forgetting, and which group it belongs to."""
    rows = []
    show, several = analysis.measure, len(tables.plan["study"]["sizes"]) > 1
    for (data, budget, size, method), found in analysis.standings.items():
        groups = analysis.groups.get((data, budget, size), [])
        letters = "".join(chr(ord("a") + n) for n, group in enumerate(groups) if method in group)
        rows.append([
            data, budget, *([size or "all"] if several else []), method,
            f"{show.value(found.mean)} [{show.value(found.low)}, {show.value(found.high)}]",
            " ".join(map(show.value, found.by_seed)), letters, f"{found.loss:.3f}" if show is PERCENT else _share(found.metric),
            "" if found.forgetting is None else f"{found.forgetting:+.3f}",
        ])
    size, other = ["records"] if several else [], "loss" if show is PERCENT else "metric (%)"
    return Table(["data", "budget", *size, "method", show.label("metric"), "by seed", "group", other, "forgetting"], rows)


def pairs(analysis: Analysis) -> Table:
    """Effects, intervals, corrected p-values and verdicts."""
    show = analysis.measure
    several = len({pair.comparison[2] for pair in analysis.pairs}) > 1
    rows = []
    for pair in analysis.pairs:
        data, budget, size = pair.comparison
        rows.append([
            data, budget, *([size or "all"] if several else []), f"{pair.a} − {pair.b}", show.change(pair.effect.mean, pair.interval),
            show.interval(pair.bootstrap), _p(pair.p_corrected), _p(pair.p_signs),
            _p(pair.p_equivalent), f"**{pair.verdict}**",
        ])
    size = ["records"] if several else []
    return Table(["data", "budget", *size, "pair", f"effect ({show.unit})", "bootstrap", "p", "signs", "TOST", "verdict"], rows)


def together(analysis: Analysis, level: float) -> Table:
    """What is left of each adapter in the average of those of all data sets."""
    show, rows = analysis.measure, []
    for (data, budget, size, method), found in analysis.together.items():
        own = analysis.standings[data, budget, size, method].mean
        change = show.change(found.mean, found.interval(1 - level))
        rows.append([data, budget, method, show.value(own), show.value(own + found.mean), change])
    return Table(["data", "budget", "method", f"own, {show.label('metric')}", "averaged", f"change ({show.unit})"], rows)


def settings(tables: Tables) -> Table:
    """Size, budget, steps, the scale that the method multiplies by, and the chosen rate on each data set."""
    study = tables.plan["study"]
    rates = {(run["data"], run["budget"], run["size"], run["method"]): run["rate"] for run in tables.runs}
    columns = [(data, size) for data in study["data"] for size in study["sizes"]]
    rows = []
    for one in tables.plan["treatments"]:
        rows.append([
            one["budget"], one["method"], "; ".join(map(_method, one["specifications"])), f"{one['parameters']:,}",
            f"{100 * one['deviation']:+.1f} %", one["steps"],
            *(_rate(rates.get((data, one["budget"], size, one["method"]))) for data, size in columns),
        ])
    names = [f"rate, {data}" + (f", {size or 'all'}" if len(study["sizes"]) > 1 else "") for data, size in columns]
    return Table(["budget", "method", "as", "parameters", "off budget", "steps", *names], rows)


def costs(tables: Tables) -> Table:
    """What was measured of each treatment."""
    rows = []
    found = tables.plan["costs"]["rows"]
    cases = list(found[0]["latency"])
    for row in found:
        step = row["step_s"]
        rows.append([
            row["budget"], row["method"], f"{row['parameters']:,}", f"{row['stored_bytes'] / 1e3:.1f}",
            f"{row['temporary_bytes'] / 1e6:.1f}", f"{1e3 * step['median']:.1f} [{1e3 * step['low']:.1f}, {1e3 * step['high']:.1f}]",
            *(_ratio(row["latency"][case][form]) for case in cases for form in ("beside", "merged")),
        ])
    names = [f"{case.split()[-1]} {form}" for case in cases for form in ("beside", "merged")]
    return Table(["budget", "method", "parameters", "stored (kB)", "step holds (MB)", "step (ms)", *names], rows)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _ratio(found: dict[str, Any] | None) -> str:
    return "does not merge" if found is None else f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _method(specification: dict[str, Any]) -> str:
    """`lora(rank=7)`: what was set, and of a LoRA the scale that follows."""
    shown = {name: value for name, value in specification.items() if name in SHOWN and value not in (None, "", [], {})}
    text = ", ".join(f"{name}={'+'.join(map(str, value)) if isinstance(value, list | tuple) else value}" for name, value in shown.items())
    if specification["method"] == "lora":
        rank, alpha = specification["rank"], specification["alpha"]
        root = rank**0.5 if specification.get("rslora") else rank
        text += f", scale={(rank if alpha is None else alpha) / root:.3g}"
    return f"{specification['method']}({text})"
