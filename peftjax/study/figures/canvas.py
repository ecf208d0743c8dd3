"""The look that all pictures of a study share: methods keep their colour and marker, axes are plain, text is legible at a page's width."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftjax.train.curves import BLUE, GREEN, ORANGE, PURPLE, RED, apart

COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, "#56B4E9", "#000000")
MARKERS = "osD^vPX"
GREY = "#666666"


def look(methods: Sequence[str], method: str) -> dict[str, str]:
    """{"color", "marker"} of a method, by its place among all."""
    place = list(methods).index(method)
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def panels(count: int, columns: int = 3, width: float = 3.4, height: float = 3.0, **options: Any):
    """(figure, list of `count` axes) in rows of at most `columns`. The figure is an object of its own: nothing is shared with pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 5.0), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for unused in axes[count:]:
        unused.remove()
    for one in axes[:count]:
        one.grid(True, color="#e5e5e5", linewidth=0.7)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
    return figure, axes[:count]


def comparisons(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, int], str]:
    """(data, budget, size) of rows of a table, with a panel's title for each: `icd, small`, and the records where sizes differ."""
    found = list(dict.fromkeys((row["data"], row["budget"], row["size"]) for row in rows))
    several = len({size for *_, size in found}) > 1
    return {place: f"{place[0]}, {place[1]}" + (f", {place[2] or 'all'} records" if several else "") for place in found}


def log_ticks(axes, values: Iterable[float]) -> None:
    """Marks a logarithmic horizontal axis at the values that stand on it, and nowhere else."""
    axes.set_xticks(apart(values))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")


def title(axes, text: str) -> None:
    """A panel's title."""
    axes.set_title(text, loc="left", fontsize=9.5, fontweight="bold")


def legend(figure, handles: dict[str, Any]) -> None:
    """One legend for all panels, above them."""
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=min(len(handles), 6), frameon=False, fontsize=9)


def png(figure) -> bytes:
    """The picture."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()
