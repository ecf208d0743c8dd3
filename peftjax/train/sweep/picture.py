"""The picture of a sweep: the metric against each field that was swept.

Points that agree in all other fields are joined by a line. Those that were stopped early, whose values are of an earlier step, are hollow
and joined by none. Failed points are crosses at the upper edge: a rate that diverges is a finding too.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftjax.files import replacing
from peftjax.train.curves import COLOURS, MARKERS, RED, apart, styled
from peftjax.train.points import label
from peftjax.train.sweep.score import Score

LEGEND = 8  # lines that a legend can name
TICKS = 7  # about as many labels stand beside each other under a panel


def swept(found: Sequence[Score]) -> dict[str, list[Any]]:
    """Fields with more than one value, with their values in order; numbers by size, others as they came."""
    values: dict[str, list] = {}
    for one in found:
        for field, value in one.point.items():
            seen = values.setdefault(field, [])
            if value not in seen:
                seen.append(value)
    return {field: sorted(seen) if numeric(seen) else seen for field, seen in values.items() if len(seen) > 1}


def numeric(values: Sequence[Any]) -> bool:
    """Whether all are numbers."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def write_picture(path: Path, found: Sequence[Score], metric: str) -> bool:
    """Draws it to a PNG file; False, and no file, where nothing was swept or measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fields = swept(found)
    if not fields or all(one.value is None for one in found):
        path.unlink(missing_ok=True)
        return False
    figure = Figure(figsize=(5.5 * len(fields), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (field, values) in enumerate(fields.items(), 1):
        draw_panel(figure.add_subplot(1, len(fields), number), field, values, found, metric)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    with replacing(path) as partial:
        partial.write_bytes(image.getvalue())
    return True


def draw_panel(axes: Any, field: str, values: list[Any], found: Sequence[Score], metric: str) -> None:
    """The metric against one field with these values."""
    styled(axes, f"{metric.replace('_', ' ')} (validation)", field, metric.replace("_", " "))
    numbers = numeric(values)
    at = (lambda value: value) if numbers else values.index
    if not numbers:
        axes.set_xticks(range(len(values)), [label({"": value}).lstrip("=") for value in values])
    elif min(values) > 0 and max(values) >= 8 * min(values):
        axes.set_xscale("log")
        shown = apart(values, max(1.3, (max(values) / min(values)) ** (1 / TICKS)))
        axes.set_xticks(shown, [f"{value:g}" for value in shown])
        axes.minorticks_off()
    lines: dict[str, list[Score]] = {}
    for one in found:
        if field in one.point and one.value is not None:
            lines.setdefault(json.dumps({k: v for k, v in one.point.items() if k != field}, sort_keys=True), []).append(one)
    for number, (others, line) in enumerate(lines.items()):
        line.sort(key=lambda one: at(one.point[field]))
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}
        name, early = label(json.loads(others)) if len(lines) <= LEGEND else "", [one for one in line if one.status == "stopped"]
        for points, style in (([one for one in line if one.status != "stopped"], "-"), (early, "")):
            hollow = {"markerfacecolor": "none"} if points is early else {"label": name}
            axes.plot([at(one.point[field]) for one in points], [one.value for one in points], linestyle=style, markersize=5, linewidth=1.5,
                      **look, **hollow)
    if any(one.status == "stopped" and field in one.point for one in found):
        axes.plot([], [], "o", color="#666666", markerfacecolor="none", markersize=5, label="stopped at an earlier step")
    failed = [at(one.point[field]) for one in found if field in one.point and one.status == "failed"]
    if failed:
        axes.plot(failed, [0.97] * len(failed), "x", color=RED, transform=axes.get_xaxis_transform(), label="failed", clip_on=False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.15), ncols=2, frameon=False, fontsize=8)  # below: the points may be anywhere
