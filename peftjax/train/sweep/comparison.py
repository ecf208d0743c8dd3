"""`sweep.md` and `sweep.png`: the points of a sweep, best first, from their work directories."""

from collections.abc import Sequence
from pathlib import Path

from peftjax.files import replacing
from peftjax.train.report import table, verbatim
from peftjax.train.result import read_result
from peftjax.train.sweep.picture import numeric, swept, write_picture
from peftjax.train.sweep.score import LOWER, Score, scores

FILE, PICTURE = "sweep.md", "sweep.png"


def write_comparison(folder: str | Path, metric: str = "loss") -> Path:
    """Writes both; the path of the table.

    Raises:
        ValueError: no such metric.
        FileNotFoundError: no sweep lies there.
    """
    folder = Path(folder)
    found = scores(folder, metric)
    drawn = write_picture(folder / PICTURE, found, metric)
    order = f"{'lowest' if metric in LOWER else 'highest'} {metric.replace('_', ' ')}"
    parts = [
        f"# {folder.name}",
        f"{len(found)} points, {order} on validation rows first. The best of many looks better than it is: its value is of the rows that "
        "chose it.",
        _table(found, metric), *edges(found), _failed(found), f"![{metric} against each field]({PICTURE})" if drawn else "",
    ]
    with replacing(folder / FILE) as partial:
        partial.write_text("\n\n".join(part for part in parts if part) + "\n")
    return folder / FILE


def edges(found: Sequence[Score]) -> list[str]:
    """A warning for each numeric field whose best value is the lowest or highest that was tried: a better one may lie beyond."""
    best = next((one for one in found if one.status == "done" and one.value is not None), None)
    lines = []
    for field, values in swept(found).items():
        chosen = None if best is None else best.point.get(field)
        if chosen is not None and numeric(values) and len(values) > 2 and chosen in (values[0], values[-1]):
            which = "lowest" if chosen == values[0] else "highest"
            lines.append(f"The best point has the {which} `{field}` that was tried ({chosen:g}): the optimum may lie beyond it.")
    return lines


def _table(found: Sequence[Score], metric: str) -> str:
    fields = list(dict.fromkeys(field for one in found for field in one.point))
    rows = []
    for number, one in enumerate(found, 1):
        result = read_result(one.folder) if one.status == "done" else None
        parameters = f"{result['trainable']['parameters']:,}" if result else ""
        seconds = f"{result['timings']['train_s']:.1f}" if result else ""
        rows.append([number, *(_value(one.point.get(field)) for field in fields), _score(one), one.status if one.step is None or result
                     else f"{one.status} at step {one.step}", parameters, seconds, f"[{one.folder.name}]({one.folder.name})"])
    return table(["", *(f"`{field}`" for field in fields), metric.replace("_", " "), "status", "parameters", "training s", "run"], rows)


def _value(value: object) -> str:
    if isinstance(value, list):
        return " + ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value["method"]) if isinstance(value, dict) and "method" in value else "" if value is None else str(value)


def _score(one: Score) -> str:
    if one.value is None:
        return ""
    return f"{one.value:.4f}" if one.low is None else f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def _failed(found: Sequence[Score]) -> str:
    failed = [[one.folder.name, verbatim(one.error)] for one in found if one.status == "failed"]
    return f"## Failed\n\nThe same command tries them again.\n\n{table(['run', 'error'], failed)}" if failed else ""
