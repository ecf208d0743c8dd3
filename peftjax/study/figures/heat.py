"""A table in colours: rows by columns, each cell with its number."""

import math
from collections.abc import Sequence

from peftjax.study.figures.canvas import panels, png


def heat(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], gaps: Sequence[int] = (), percent: bool = True,
) -> bytes | None:
    """The picture; None where there is nothing. NaN is an empty cell; a line is drawn before the columns `gaps`.

    Args:
        percent: values are in [0, 1] and shown in percent, else they are shown as they are, on a scale from the least to the largest.
    """
    if not rows or not columns:
        return None
    width, height = 2.2 + 0.62 * len(columns), 1.6 + 0.3 * len(rows)
    figure, (axes,) = panels(1, width=width, height=height)
    there = [value for row in values for value in row if not math.isnan(value)]
    least, most = (0.0, 1.0) if percent else (min(there), max(there))
    axes.imshow(values, cmap="YlGnBu", vmin=least, vmax=most, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if not math.isnan(value):
                dark = value - least > 0.6 * (most - least)
                text = f"{100 * value:.0f}" if percent else f"{value:.2f}"
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    for gap in gaps:
        axes.axvline(gap - 0.5, color="black", linewidth=1.2)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return png(figure)
