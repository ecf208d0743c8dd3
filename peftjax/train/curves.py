"""The curves of a run as PNG files, drawn from its log and its result.

    loss.png            training loss a step, its running mean, and the loss on held-out records
    learning_rate.png   the learning rate a step
    metrics.png         each metric at each evaluation with its 95 % interval
    forgetting.png      change of the loss on general text since before training

Colours: the first of a palette that colour-blind readers tell apart (Okabe and Ito, 2008); lines also differ by marker.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from peftjax.files import replacing

BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
COLOURS, MARKERS = (BLUE, RED, GREEN, PURPLE, ORANGE), "osD^v"
SMOOTHING = 0.9  # of the running mean, at 100 steps; fewer steps are smoothed less


def write_curves(folder: Path, log: Sequence[Mapping], evaluations: Sequence[Mapping]) -> list[str]:
    """Draw those curves that there are numbers for; the names of the files written into `folder`.

    Args:
        folder: where to; created if needed.
        log: lines of metrics.jsonl; those with "loss" are training steps.
        evaluations: of result.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "loss.png": _loss(_series(log, "loss"), _series(evaluations, "loss")),
        "learning_rate.png": _learning_rate(_series(log, "learning_rate")),
        "metrics.png": _metrics(evaluations),
        "forgetting.png": _forgetting(_series(evaluations, "forgetting")),
    }
    for name, figure in drawn.items():
        if figure is not None:
            image = io.BytesIO()
            figure.savefig(image, format="png", dpi=120)
            with replacing(folder / name) as partial:
                partial.write_bytes(image.getvalue())
    return [name for name, figure in drawn.items() if figure is not None]


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Running mean in which older values fade by `weight` a step, without the pull towards 0 at the start (as in Adam).

    Values that are not finite are passed over.
    """
    mean, total, means = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
        means.append(mean / total if total else math.nan)
    return means


def apart(values: Iterable[float], least: float = 1.3) -> list[float]:
    """Of positive values those that are at least `least` times the one before, to two digits but where they are whole: labels of a
    logarithmic axis."""
    found: list[float] = []
    for value in sorted({float(value if value == int(value) else f"{value:.2g}") for value in values}):
        if not found or value >= least * found[-1]:
            found.append(value)
    return found


def _series(lines: Sequence[Mapping], name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines that have `name`."""
    found = [(line["step"], float(line[name])) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _axes(title: str, y_label: str):
    """A figure of 7 by 4 inches and its axes. The figure is an object of its own: nothing is shared with pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = styled(figure.add_subplot(), title, "training step", y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=2))
    return figure, axes


def styled(axes, title: str, x_label: str, y_label: str):
    """The axes with their texts, in the look of every picture here."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _loss(train: tuple[list[int], list[float]], held_out: tuple[list[int], list[float]]):
    """Training and held-out loss; None without either."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if not train[0] and not held_out[0]:
        return None
    figure, axes = _axes("Loss on response tokens", "loss (nats per token)")
    if train[0]:
        axes.plot(*train, color=BLUE, alpha=0.3, linewidth=1, label="training, each step")
        weight = SMOOTHING if len(train[0]) >= 100 else max(0.0, 1 - 10 / len(train[0]))
        axes.plot(train[0], smoothed(train[1], weight), color=BLUE, linewidth=2, label="training, running mean")
    if held_out[0]:
        axes.plot(*held_out, color=RED, marker="s", markersize=5, linewidth=1.5, label="held-out records")
    values = [value for value in train[1] + held_out[1] if math.isfinite(value) and value > 0]
    if values and max(values) > 20 * min(values):  # a fine-tuning loss often falls by two orders of magnitude
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif values:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _learning_rate(series: tuple[list[int], list[float]]):
    """Learning rate a step; None when it was not logged."""
    if not series[0]:
        return None
    figure, axes = _axes("Learning rate", "learning rate")
    axes.plot(*series, color=BLUE, linewidth=2)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:.3g}")
    return figure


def _metrics(evaluations: Sequence[Mapping]):
    """Each metric on each split, with its intervals; None when none was measured."""
    series = {}
    for evaluation in evaluations:
        for name, point in (evaluation.get("metrics") or {}).items():
            series.setdefault((name, evaluation.get("split")), []).append((evaluation["step"], point))
    if not series:
        return None
    names, splits = (list(dict.fromkeys(key[part] for key in series)) for part in (0, 1))
    densest = max(map(len, series.values()))
    figure, axes = _axes("Metrics on held-out records", "score (%), 95 % interval")
    for (name, split), points in series.items():
        label = name.replace("_", " ") + (f" ({split})" if len(splits) > 1 else "")
        steps = [step for step, _ in points]
        mean, low, high = ([100 * float(point[key]) for _, point in points] for key in ("mean", "low", "high"))
        errors = [[middle - end for middle, end in zip(mean, low, strict=True)],
                  [end - middle for middle, end in zip(mean, high, strict=True)]]
        look = {  # colour by metric, marker by split; a split measured more seldom has a dotted line
            "color": COLOURS[names.index(name) % len(COLOURS)], "marker": MARKERS[splits.index(split) % len(MARKERS)],
            "linestyle": "-" if len(points) == densest else ":", "markersize": 5,
        }
        axes.errorbar(steps, mean, errors, label=label, linewidth=1.5, elinewidth=1, capsize=3, **look)
    axes.set_ylim(-2, 102)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)  # beside the lines, which may be anywhere
    return figure


def _forgetting(series: tuple[list[int], list[float]]):
    """Change of the loss on general text; None when it was not measured."""
    if not series[0]:
        return None
    figure, axes = _axes("Forgetting: loss on general text, against the untouched base", "change (nats per token)")
    axes.axhline(0.0, color="#666666", linewidth=1)
    axes.plot(*series, color=BLUE, marker="o", markersize=5, linewidth=1.5)
    span = max((abs(value) for value in series[1] if math.isfinite(value)), default=0.0)
    if span < 0.01:  # a change too small to matter must not fill the picture
        axes.set_ylim(-0.01, 0.01)
    return figure
