"""The singular values of adapters, drawn: one line for each, the median over kernels and layers, with the middle four fifths as a band."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from peftjax.files import replacing
from peftjax.train.curves import COLOURS, MARKERS


def write_spectra(file: Path, spectra: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """A PNG file. spectra: by adapter, then by kernel and layer, values [K], largest first; kernels without any are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title("Spectra of the changed weights: median of kernels, 10 to 90 % band", loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("singular value, by size")
    axes.set_ylabel("size")
    for number, (name, by_kernel) in enumerate(spectra.items()):
        low, middle, high = bands(by_kernel)
        places = np.arange(1, len(middle) + 1)
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)] if len(places) <= 32 else None}
        axes.plot(places, middle, label=name, linewidth=1.5, markersize=4, **look)
        axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=2))
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    with replacing(file) as partial:
        partial.write_bytes(image.getvalue())


def bands(by_kernel: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(10 %, median, 90 %) at each place of the spectra, of the kernels that have as many values: [K] each."""
    longest = max((len(values) for values in by_kernel.values()), default=0)
    columns = [[values[place] for values in by_kernel.values() if len(values) > place] for place in range(longest)]
    return tuple(np.array([np.quantile(column, share) for column in columns]) for share in (0.1, 0.5, 0.9))
