"""Learning curves: training loss by step, the mean over seeds with a band from the lowest to the highest, a panel a data set and budget."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from peftjax.study.figures.canvas import comparisons, legend, look, panels, png, title
from peftjax.train.curves import smoothed

POINTS = 60


def learning(runs: Sequence[dict[str, Any]], methods: Sequence[str]) -> bytes | None:
    """The picture; None without finished runs. Means over stretches of steps, smoothed a little."""
    from matplotlib.ticker import LogLocator, NullFormatter

    runs = [run for run in runs if not run["error"]]
    places = comparisons(runs)
    if not places:
        return None
    figure, axes = panels(len(places))
    handles = {}
    for one, (place, words) in zip(axes, places.items(), strict=True):
        for method in methods:
            own = [run["curve"] for run in runs if (run["data"], run["budget"], run["size"]) == place and run["method"] == method]
            if not own:
                continue
            length = min(len(curve["loss"]) for curve in own)
            width = max(1, length // POINTS)
            cut = length - length % width
            steps = np.array(own[0]["step"][:cut]).reshape(-1, width)[:, -1]
            losses = [smoothed(np.array(curve["loss"][:cut], float).reshape(-1, width).mean(axis=1), 0.6) for curve in own]
            colour = look(methods, method)["color"]
            handles[method] = one.plot(steps, np.mean(losses, axis=0), color=colour, linewidth=1.6)[0]
            one.fill_between(steps, np.min(losses, axis=0), np.max(losses, axis=0), color=colour, alpha=0.18, linewidth=0)
        one.set_yscale("log")
        one.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=12))
        one.yaxis.set_major_formatter("{x:g}")
        one.yaxis.set_minor_formatter(NullFormatter())
        title(one, words)
        one.set_xlabel("step", fontsize=8.5)
        one.set_ylabel("training loss (nats a token)", fontsize=8.5)
    legend(figure, handles)
    return png(figure)
