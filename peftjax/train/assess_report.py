"""`report.md` of an evaluation: the metrics with their intervals, overall, by domain and by language, a picture, and samples.

    write_assessment(folder)          -> folder/report.md, folder/domains.png       from result.json and predictions.jsonl
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from peftjax.files import replacing
from peftjax.train.curves import COLOURS
from peftjax.train.report import interval, table, verbatim
from peftjax.train.result import read_result

MOST = 40  # domains or languages listed; of more, those with the most rows
SAMPLES = 12


def write_assessment(folder: str | Path) -> Path:
    """Writes the report, and the picture where there are two domains with a metric; the report's path.

    Raises FileNotFoundError when the folder has no result.json.
    """
    folder = Path(folder)
    found = read_result(folder)
    whole, metrics = found["evaluations"][0], list(found["evaluations"][0]["metrics"])
    sections = [_title(found), "## Metrics\n\n" + table(*_rows({"all": whole}, metrics, ""))]
    for heading, key in (("Domains", "domains"), ("Languages", "languages")):
        groups = {name or "(none)": group for name, group in found[key].items()}
        if len(groups) < 2:
            continue
        shown, note = _largest(groups)
        picture = ""
        if key == "domains" and metrics:
            image = io.BytesIO()
            bars(shown, whole, metrics).savefig(image, format="png", dpi=120)
            with replacing(folder / "domains.png") as partial:
                partial.write_bytes(image.getvalue())
            picture = "\n\n![Metrics by domain](domains.png)"
        sections.append(f"## {heading}\n\n" + table(*_rows(shown, metrics, heading[:-1].lower())) + note + picture)
    sections += [_samples(folder, metrics), "Every row is in [predictions.jsonl](predictions.jsonl), else [result.json](result.json)"]
    path = folder / "report.md"
    with replacing(path) as partial:
        partial.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8", errors="backslashreplace")
    return path


def bars(groups: Mapping[str, Mapping], whole: Mapping, metrics: Sequence[str]):
    """A figure: for each group a bar a metric with its 95 % interval, the best group of the first metric on top, and the overall means
    as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [name for name in groups if metrics[0] in groups[name]["metrics"]]
    names = sorted(measured, key=lambda name: groups[name]["metrics"][metrics[0]]["mean"])
    thick = 0.8 / len(metrics)
    figure = Figure(figsize=(7, 1.5 + 0.28 * len(names) * max(1, len(metrics) * 0.7)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, metric in enumerate(metrics):
        points = [(line, groups[name]["metrics"][metric]) for line, name in enumerate(names) if metric in groups[name]["metrics"]]
        where = [line + thick * ((len(metrics) - 1) / 2 - number) for line, _ in points]
        mean, low, high = ([100 * float(point[key]) for _, point in points] for key in ("mean", "low", "high"))
        errors = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
        colour = COLOURS[number % len(COLOURS)]
        ends = {"elinewidth": 1, "capsize": 2, "ecolor": "#333333"}
        label = metric.replace("_", " ")
        axes.barh(where, mean, 0.9 * thick, xerr=errors, color=colour, alpha=0.75, error_kw=ends, label=label)
        axes.axvline(100 * float(whole["metrics"][metric]["mean"]), color=colour, linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(names)), [f"{_short(name)} ({groups[name]['rows']})" for name in names], fontsize=8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, 100)
    axes.set_xlabel("score (%), 95 % interval; dashed: all rows")
    what = metrics[0].replace("_", " ").capitalize() if len(metrics) == 1 else "Metrics"
    axes.set_title(f"{what} by domain (rows)", loc="left", fontsize=11, fontweight="bold")
    axes.grid(True, axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(metrics) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def _title(found: Mapping) -> str:
    config, trainable, rows = found["config"], found["trainable"], found["data"]["counts"]["rows"]
    asked = config["assess"]
    methods = ", ".join(dict.fromkeys(method["method"] for method in found["methods"]))
    what = asked["run"] or config["adapter"]["path"]
    adapter = f"`{what}`" + (f" at step {asked['step']}" if asked["run"] else "") + f": {methods}, {trainable['parameters']:,} parameters"
    lines = [
        f"# {found['data']['name']}, evaluated", "",
        f"- Base: `{found['base']['uri'].split('#')[0]}`, {found['base']['parameters']:,} parameters",
        f"- Adapter: {adapter if what else 'none'}",
        f"- Data: {found['evaluations'][0]['rows']:,} rows of the split {asked['split']}",
    ]
    odd = [f"{rows[name]:,} {name}" for name in ("truncated", "dropped") if rows.get(name)]
    if odd:
        lines.append(f"- Rows that did not fit into {config['data']['length']} tokens: {', '.join(odd)}")
    return "\n".join(lines)


def _rows(groups: Mapping[str, Mapping], metrics: Sequence[str], what: str) -> tuple[list[str], list[list]]:
    """Header and rows of a table of summaries."""
    single = [name for name in ("loss", "perplexity", "macro_f1") if any(name in group for group in groups.values())]
    header = [what, "rows", *(f"{name.replace('_', ' ')} (%)" for name in metrics), *(name.replace("_", " ") for name in single)]
    rows = []
    for name, group in groups.items():
        values = ["" if group.get(key) is None else f"{float(group[key]):.4g}" for key in single]
        rows.append([name, group["rows"], *(interval(group["metrics"].get(metric)) for metric in metrics), *values])
    return header, rows


def _largest(groups: Mapping[str, Mapping]) -> tuple[dict[str, Mapping], str]:
    """At most MOST groups, those with the most rows, in the order of their names; and a note of what is left out."""
    if len(groups) <= MOST:
        return dict(groups), ""
    kept = sorted(groups, key=lambda name: (-groups[name]["rows"], name))[:MOST]
    return {name: groups[name] for name in sorted(kept)}, f"\n\nThe {MOST} of {len(groups):,} with the most rows."


def _samples(folder: Path, metrics: Sequence[str]) -> str:
    """Answers evenly spaced over the rows."""
    lines = (folder / "predictions.jsonl").read_text("utf-8").split("\n")
    items = [item for item in (json.loads(line) for line in lines if line) if "prediction" in item]
    if not items:
        return ""
    columns = ("prompt", "reference", "prediction")
    shown = [items[number * len(items) // SAMPLES] for number in range(SAMPLES)] if len(items) > SAMPLES else items
    rows = [
        [*(verbatim(item[key]) for key in columns), *(f"{item[name]:.3g}" for name in metrics)] for item in shown
    ]
    return f"## Samples\n\n{len(shown)} of {len(items):,} rows, evenly spaced.\n\n" + table([*columns, *metrics], rows)


def _short(name: str) -> str:
    return name if len(name) <= 32 else name[:31] + "…"
