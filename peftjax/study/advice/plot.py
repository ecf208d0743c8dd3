"""Candidates as a picture: what a token takes over the base against the memory of all domains, and quality where studies know it.

Filled: recommended or tied for it; grey: dominated or left out by a bound; the dashed lines are bounds that were asked for.
"""

import io
from pathlib import Path
from typing import Any

from peftjax.files import replacing
from peftjax.study.advice.decide import CHOICE, DOMINATED, FRONT, OUT, RECOMMENDED, Advice, Verdict
from peftjax.study.measure import measure_called
from peftjax.train.curves import BLUE, MARKERS, RED

LOOKS = {RECOMMENDED: (RED, RED), CHOICE: (RED, RED), FRONT: (BLUE, "white"), DOMINATED: ("#999999", "white"), OUT: ("#999999", "white")}
PLACES = ((8, 6), (-8, 6), (8, -13), (-8, -13), (0, 10), (0, -17))  # of a number beside its point, in points


def write_plot(advice: Advice, path: Path) -> Path | None:
    """Draws the measured candidates; the file, or None where nothing was measured."""
    measured = [one for one in advice.verdicts if one.cost is not None]
    if not measured:
        return None
    image = io.BytesIO()
    figure_of(advice, measured).savefig(image, format="png", dpi=120)
    with replacing(path) as partial:
        partial.write_bytes(image.getvalue())
    return path


def figure_of(advice: Advice, measured: list[Verdict]) -> Any:
    """The figure: a panel of costs, with all that were measured, and up to two of quality, with those that studies know."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(data for one in measured for data in one.quality))
    figure = Figure(figsize=(6 * (1 + len(sets[:2])) + 3, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [_cost, *(lambda axes, shown, needs, data=data: _quality(axes, shown, needs, data) for data in sets[:2])]
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        panel(axes, measured, advice.needs)
        axes.set_xlabel("time of a token over the base's (%), 95 % interval")
        axes.axvline(0.0, color="#666666", linewidth=1)
        if advice.needs.latency is not None:
            axes.axvline(100 * (advice.needs.latency - 1), color="#666666", linewidth=1, linestyle="--")
        axes.grid(True, color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].legend(*figure.axes[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def _cost(axes, measured: list[Verdict], needs) -> None:
    for number, one in enumerate(measured):
        _point(axes, number, one, one.cost.serving_bytes / 1e6, None)
    several = "s" if needs.domains > 1 else ""
    axes.set_title(f"Parameters in memory for {needs.domains} domain{several}", loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel("MB")
    if needs.serving_mb is not None:
        axes.axhline(needs.serving_mb, color="#666666", linewidth=1, linestyle="--")


def _quality(axes, measured: list[Verdict], needs, data: str) -> None:
    metric = ""
    for number, one in enumerate(measured):
        if data in one.quality:
            found = one.quality[data]
            metric, factor = found.metric, measure_called(found.metric).factor
            _point(axes, number, one, factor * found.mean, [[factor * (found.mean - found.low)], [factor * (found.high - found.mean)]])
    axes.set_title(f"Quality on {data}", loc="left", fontsize=11, fontweight="bold")
    axes.set_ylabel(f"{measure_called(metric).label(metric)}, 95 % interval")


def _point(axes, number: int, one: Verdict, y: float, y_error) -> None:
    colour, face = LOOKS[one.state]
    token = one.cost.token
    x_error = [[100 * (token.value - token.low)], [100 * (token.high - token.value)]]
    axes.errorbar(
        [100 * (token.value - 1)], [y], y_error, x_error, marker=MARKERS[number % len(MARKERS)], color=colour, markerfacecolor=face,
        markersize=7, linestyle="none", elinewidth=1, capsize=3, label=f"{number + 1}  {one.candidate.name} ({one.state})",
    )
    beside = PLACES[number % len(PLACES)]
    axes.annotate(str(number + 1), (100 * (token.value - 1), y), textcoords="offset points", xytext=beside, ha="center", fontsize=9)
