"""Tuning: the score of each learning rate on validation, a panel a data set and budget; the chosen rate is filled."""

import math
from collections.abc import Sequence
from typing import Any

from peftjax.study.fair import mean_scores
from peftjax.study.figures.canvas import comparisons, legend, log_ticks, look, panels, png, title
from peftjax.study.rates import best


def tuning(trials: Sequence[dict[str, Any]], methods: Sequence[str]) -> bytes | None:
    """The picture; None without trials. A trial that diverged stands as a cross at the top."""
    places = comparisons(trials)
    if not places:
        return None
    figure, axes = panels(len(places))
    handles = {}
    for one, (place, words) in zip(axes, places.items(), strict=True):
        for method in methods:
            own = [t for t in trials if (t["data"], t["budget"], t["size"]) == place and t["method"] == method]
            scores, rates = mean_scores(own), {t["k"]: t["rate"] for t in own}
            steps, style = sorted(scores), look(methods, method)
            there = [k for k in steps if math.isfinite(scores[k])]
            handles[method] = one.plot(
                [rates[k] for k in there], [scores[k] for k in there], linewidth=1.4, markersize=5, markerfacecolor="white", **style
            )[0]
            chosen = best(scores)
            if chosen is not None:
                one.plot([rates[chosen]], [scores[chosen]], markersize=7, **style)
            diverged = [rates[k] for k in steps if not math.isfinite(scores[k])]
            one.plot(diverged, [0.97] * len(diverged), "x", color=style["color"], transform=one.get_xaxis_transform(), markersize=6)
        one.set_xscale("log")
        log_ticks(one, [t["rate"] for t in trials if (t["data"], t["budget"], t["size"]) == place])
        title(one, words)
        one.set_xlabel("learning rate", fontsize=8.5)
        measure = trials[0]["measure"]
        one.set_ylabel("validation loss (nats a token)" if measure == "loss" else f"−{measure.replace('_', ' ')}, validation", fontsize=8.5)
    legend(figure, handles)
    return png(figure)
