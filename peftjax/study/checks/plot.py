"""A check's lines as a PNG file."""

import io
import math
from pathlib import Path

from peftjax.files import replacing
from peftjax.study.checks.finding import Plot
from peftjax.train.curves import COLOURS, MARKERS

STYLES = ("-", "--", ":")


def write_plot(plot: Plot, path: Path) -> Path:
    """Draws it; the file. Bars are intervals where a series has them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(plot.series.items()):
        points = [point for point in zip(*values, strict=True) if all(math.isfinite(value) for value in point)]
        if not points:
            continue
        x, y, *interval = zip(*points, strict=True)
        style = {
            "color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4, "label": name,
            "markerfacecolor": "white" if number // len(COLOURS) % 2 else None,  # the second series of a colour is hollow
            "linestyle": STYLES[number // len(COLOURS) % len(STYLES)] if plot.joined else "none", "linewidth": 1.4,
        }
        if interval:
            low, high = interval
            bars = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
            axes.errorbar(x, y, yerr=bars, capsize=2, **style)
        else:
            axes.plot(x, y, **style)
    if plot.log_x:
        axes.set_xscale("log")
    if plot.log_y:
        axes.set_yscale("log")
    axes.set_title(plot.title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    with replacing(path) as partial:
        partial.write_bytes(image.getvalue())
    return path
