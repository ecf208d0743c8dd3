"""Quality against what it costs, a panel a data set: a point a treatment, its interval upright.

The broad line joins those that none beats on both, thin ones the points of a method at rising budgets.
"""

from collections.abc import Mapping, Sequence

from peftjax.study.compare import Analysis
from peftjax.study.figures.canvas import GREY, legend, log_ticks, look, panels, png, title


def pareto(
    analysis: Analysis, methods: Sequence[str], size: int, costs: Mapping[tuple[str, str], float], label: str, log: bool = False,
    spread: Mapping[tuple[str, str], tuple[float, float]] = {},
) -> bytes | None:
    """The picture; None where nothing was compared.

    Args:
        size: of the training data.
        costs: (method, budget) -> cost; treatments without one are left out.
        label: of the cost, with its unit.
        spread: (method, budget) -> (low, high) of the cost.
    """
    data = list(dict.fromkeys(key[0] for key in analysis.standings if key[2] == size))
    if not data or not costs:
        return None
    figure, axes = panels(len(data))
    handles, by = {}, analysis.measure.factor
    for one, name in zip(axes, data, strict=True):
        points = {
            (method, budget): (costs[method, budget], standing)
            for (where, budget, records, method), standing in analysis.standings.items()
            if where == name and records == size and (method, budget) in costs
        }
        front = frontier([(cost, standing.mean) for cost, standing in points.values()])
        one.plot([x for x, _ in front], [by * y for _, y in front], color="#bbbbbb", linewidth=5, solid_capstyle="round", zorder=1)
        for method in methods:
            own = sorted((cost, by * s.mean, by * s.low, by * s.high, key) for key, (cost, s) in points.items() if key[0] == method)
            if not own:
                continue
            x, y = [p[0] for p in own], [p[1] for p in own]
            style = look(methods, method)
            one.plot(x, y, color=style["color"], linewidth=0.8, alpha=0.6, zorder=2)
            ends = [spread.get(p[4], (p[0], p[0])) for p in own]
            sideways = [[max(0.0, p[0] - low) for p, (low, _) in zip(own, ends, strict=True)],
                        [max(0.0, high - p[0]) for p, (_, high) in zip(own, ends, strict=True)]]
            errors = [[p[1] - p[2] for p in own], [p[3] - p[1] for p in own]]
            handles[method] = one.errorbar(
                x, y, errors, sideways if spread else None, linestyle="none", markersize=6, elinewidth=1, capsize=2.5, zorder=3, **style
            )
        title(one, name)
        one.set_xlabel(label, fontsize=8.5)
        one.set_ylabel(analysis.measure.label(analysis.metrics[name]), fontsize=8.5)
        there = [cost for cost, _ in points.values()]
        if log and max(there) > 2 * min(there):
            one.set_xscale("log")
            log_ticks(one, there)
        one.margins(x=0.12)
    handles["none better and cheaper"] = axes[0].plot([], [], color="#bbbbbb", linewidth=5)[0]
    legend(figure, handles)
    figure.supxlabel("upright: 95 % interval over seeds and items" + ("; sideways: spread" if spread else ""), fontsize=8, color=GREY)
    return png(figure)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, quality), those that no other beats in both, by cost."""
    found: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda p: (p[0], -p[1])):
        if not found or quality > found[-1][1]:
            found.append((cost, quality))
    return found
