"""Effects of all pairs: each with its interval, on the band within which a difference does not matter, a panel a data set."""

from collections.abc import Sequence

from peftjax.evals.statistics.equivalence import EQUIVALENT, OPEN
from peftjax.study.compare import Pair
from peftjax.study.figures.canvas import GREY, panels, png, title
from peftjax.study.measure import Measure
from peftjax.train.curves import BLUE, GREEN, ORANGE

INK = {EQUIVALENT: GREEN, OPEN: GREY}


def effects(pairs: Sequence[Pair], region: float, measure: Measure) -> bytes | None:
    """The picture; None without pairs."""
    by = measure.factor
    data = list(dict.fromkeys(pair.comparison[0] for pair in pairs))
    if not data:
        return None
    most = max(sum(pair.comparison[0] == name for pair in pairs) for name in data)
    figure, axes = panels(len(data), columns=1, width=7.2, height=0.8 + 0.26 * most, sharex=True)
    for one, name in zip(axes, data, strict=True):
        own = [pair for pair in pairs if pair.comparison[0] == name]
        one.axvspan(-by * region, by * region, color="#e8f3ec", zorder=0)
        one.axvline(0, color=GREY, linewidth=0.8)
        for place, pair in enumerate(reversed(own)):
            ink = INK.get(pair.verdict, BLUE)
            low, high = (by * end for end in pair.interval)
            one.plot([low, high], [place, place], color=ink, linewidth=2.2, solid_capstyle="butt")
            one.plot([by * end for end in pair.bootstrap], [place - 0.22] * 2, color=ORANGE, linewidth=1)
            one.plot([by * pair.effect.mean], [place], marker="o", color=ink, markersize=5)
        one.set_yticks(range(len(own)), [label(pair) for pair in reversed(own)], fontsize=8)
        one.set_ylim(-0.7, len(own) - 0.3)
        one.grid(False, axis="y")
        title(one, name)
    axes[-1].set_xlabel(f"difference ({measure.unit}); green: shown to be within the shaded region; blue: a difference;\n"
                        "grey: neither; thin line: by bootstrap", fontsize=8)
    return png(figure)


def label(pair: Pair) -> str:
    """`LoRA - Pfeiffer, small`."""
    _, budget, size = pair.comparison
    return f"{pair.a} − {pair.b}, {budget}" + (f", {size}" if size else "")
