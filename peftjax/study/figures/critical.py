"""Critical-difference diagram (J. Demsar, 2006): mean ranks on a line, bars over groups that Nemenyi's test cannot tell apart."""

from peftjax.study.compare import Ranking
from peftjax.study.figures.canvas import GREY, look, panels, png


def critical(ranking: Ranking) -> bytes:
    """The picture. Best rank on the left."""
    count = len(ranking.methods)
    order = sorted(range(count), key=lambda place: ranking.ranks[place])
    figure, (axes,) = panels(1, width=7.0, height=1.6 + 0.18 * count)
    axes.set_xlim(0.8 - 0.3 * count, count + 0.2 + 0.3 * count)  # room for names on either side
    bars = [group for group in ranking.groups if len(group) > 1]
    top = 0.5 + 0.3 * len(bars)
    axes.set_ylim(-0.6 * (count + 1) // 2 - 0.6, top + 1.1)
    axes.plot([0.8, count + 0.2], [0, 0], color="black", linewidth=1)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [0, 0.12], color="black", linewidth=1)
        axes.text(tick, 0.18, str(tick), ha="center", va="bottom", fontsize=9)
    for row, place in enumerate(order):
        rank, left = ranking.ranks[place], row < (count + 1) // 2
        y = -0.6 * (row + 1 if left else count - row)
        end = 0.8 if left else count + 0.2
        side = {"x": end - 0.05, "ha": "right"} if left else {"x": end + 0.05, "ha": "left"}
        style = look(ranking.methods, ranking.methods[place])
        axes.plot([rank, rank, end], [0, y, y], color=style["color"], linewidth=1.4)
        axes.plot([rank], [0], linestyle="none", markersize=7, **style)
        text = f"{ranking.methods[place]}  {rank:.2f}"
        axes.text(y=y, s=text, va="center", fontsize=10, color=style["color"], **side)
    at = {method: rank for method, rank in zip(ranking.methods, ranking.ranks, strict=True)}
    for number, group in enumerate(bars):
        y = 0.75 + 0.3 * number
        low, high = min(at[m] for m in group), max(at[m] for m in group)
        axes.plot([low - 0.02, high + 0.02], [y, y], color="black", linewidth=4, solid_capstyle="butt")
    width = min(ranking.critical, count - 1)
    axes.plot([1, 1 + width], [top + 0.55] * 2, color=GREY, linewidth=1.5, marker="|", markersize=9)
    wide = "" if ranking.critical <= count - 1 else ", more than ranks can differ: too few blocks to tell any two apart"
    axes.text(1, top + 0.65, f"critical difference {ranking.critical:.2f}{wide}", fontsize=9, color=GREY, va="bottom")
    axes.axis("off")
    return png(figure)
