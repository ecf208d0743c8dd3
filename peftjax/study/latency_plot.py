"""What arms take over the base, as a picture: reading prompts against their tokens, and making tokens against rows.

One line an arm, with 95 % intervals; hollow where the interval is too wide to be a result. The line at 0 is the base.
"""

import io
from pathlib import Path

from peftjax.files import replacing
from peftjax.study.latency import Latency, Row
from peftjax.train.curves import COLOURS, MARKERS

TITLES = {"forward": ("Reading prompts", "tokens in all (batch x length)"), "decode": ("A token more for each row", "rows (batch)")}


def write_plot(found: Latency, path: Path) -> Path:
    """Draws the picture into a PNG file; the file.

    Raises:
        ValueError: nothing was measured that has a base to be compared with.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [kind for kind in TITLES if any(row.case.kind == kind and row.over for row in found.rows)]
    if not kinds:
        raise ValueError("no prompt was read and no token made by any arm beside the base: there is nothing to draw")
    figure = Figure(figsize=(5.5 * len(kinds) + 1.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    arms = [arm for arm in found.sizes if any(row.arm == arm and row.over for row in found.rows)]
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), place + 1)
        _panel(axes, [row for row in found.rows if row.case.kind == kind and row.over], arms)
        title, label = TITLES[kind]
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel(label)
        axes.set_ylabel("time over the base (%), 95 % interval")
    figure.axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    with replacing(path) as partial:
        partial.write_bytes(image.getvalue())
    return path


def _panel(axes, rows: list[Row], arms: list[str]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    sizes = sorted({row.case.batch * row.case.length for row in rows})
    for number, arm in enumerate(arms):
        own = sorted((row for row in rows if row.arm == arm), key=lambda row: row.case.batch * row.case.length)
        if not own:
            continue
        shift = (2 * sizes[-1] / sizes[0]) ** (0.012 * (number - len(arms) / 2))  # intervals of several arms at one place stay apart
        x = [row.case.batch * row.case.length * shift for row in own]
        middle, low, high = ([100 * (getattr(row.over, end) - 1) for row in own] for end in ("value", "low", "high"))
        errors = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        colour = COLOURS[number % len(COLOURS)]
        line = "-" if number < len(COLOURS) else "--"
        axes.errorbar(x, middle, errors, color=colour, linestyle=line, linewidth=1.5, elinewidth=1, capsize=3, label=arm)
        for at, value, row in zip(x, middle, own, strict=True):
            face = colour if row.over.kept else "white"
            axes.plot(at, value, marker=MARKERS[number % len(MARKERS)], color=colour, markersize=6, markerfacecolor=face)
    axes.axhline(0.0, color="#666666", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
