"""What was measured of methods' costs, as tables and as plain data.

    | arm | forward 1x1 | forward 1x32 | ...        ms of the base, and how many times as long the others take, with 95 % intervals
    | arm | trains | stored MB | ...                sizes
"""

import dataclasses
from typing import Any

from peftjax.study.arms import Size
from peftjax.study.latency import Latency, Row
from peftjax.study.programs import Case
from peftjax.study.timing import WIDE, Ratio, Spread


def as_table(found: Latency) -> str:
    """Ratios of the serving cases, steps of training, and sizes, in Markdown; under it what was discarded or refused."""
    serving = [case for case in cases(found) if case.kind != "train"]
    parts = [_about(found)]
    if serving:
        heads = ["arm", *map(str, serving)]
        parts.append(_table(heads, [[arm, *(_cell(found.row(arm, case)) for case in serving)] for arm in found.sizes]))
    training = [row for row in found.rows if row.case.kind == "train"]
    if training:
        heads = ["arm", "step", "s", f"times {training[0].against}", "temporaries MB", "arguments MB"]
        parts.append(_table(heads, [_trained(row) for row in training]))
    parts.append(_table(["arm", "trains", "stored MB", "held MB", "merges"], [[arm, *_size(size)] for arm, size in found.sizes.items()]))
    wide = [f"{row.arm}, {row.case}: {_ratio(row.over)}" for row in found.rows if row.over and not row.over.kept]
    if wide:
        parts.append(f"Discarded, since the interval is wider than {100 * WIDE:.0f} % of the ratio: {'; '.join(wide)}.")
    if found.refused:
        parts.append("Left out: " + "; ".join(f"{name}: {why}" for name, why in found.refused.items()) + ".")
    return "\n\n".join(parts)


def cases(found: Latency) -> list[Case]:
    """All cases, in the order in which they were measured."""
    return list(dict.fromkeys(row.case for row in found.rows))


def as_data(found: Latency) -> dict[str, Any]:
    """Plain data for JSON; `from_data` reads it."""
    return dataclasses.asdict(found)


def from_data(data: dict[str, Any]) -> Latency:
    """What `as_data` gave."""
    rows = [
        Row(**{
            **row, "case": Case(**row["case"]), "seconds": Spread(**row["seconds"]), "times": tuple(row["times"]),
            "over": None if row["over"] is None else Ratio(**row["over"]),
        })
        for row in data["rows"]
    ]
    sizes = {name: Size(**size) for name, size in data["sizes"].items()}
    return Latency(**{**data, "rows": rows, "sizes": sizes, "load": tuple(data["load"])})


def _about(found: Latency) -> str:
    about, held = found.machine, "" if found.quantise is None else f" held {found.quantise}"
    return (
        f"{found.base}{held}, layers {'written out' if found.unroll else 'scanned'}; {about['devices']} ({about['processor']}, "
        f"{about['cores']} cores), jax {about['jax']}; load {found.load[0]:.1f} before and {found.load[1]:.1f} after. Medians, quartiles "
        f"in round brackets; times the base's with 95 % intervals in square ones."
    )


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return _milliseconds(row.seconds) if row.over is None else _ratio(row.over) if row.over.kept else "discarded"


def _milliseconds(seconds: Spread) -> str:
    digits = max(0, 2 - len(str(int(1e3 * seconds.median))) + 1)
    median, low, high = (f"{1e3 * value:.{digits}f}" for value in (seconds.median, seconds.low, seconds.high))
    return f"{median} ms ({low}-{high})"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _trained(row: Row) -> list[str]:
    over = "" if row.over is None else _ratio(row.over) if row.over.kept else "discarded"
    return [
        row.arm, f"{row.case.batch}x{row.case.length}", f"{row.seconds.median:.3g}", over, f"{row.temporary_bytes / 1e6:.3g}",
        f"{row.argument_bytes / 1e6:.3g}",
    ]


def _size(size: Size) -> list[str]:
    merges = "" if size.merges is None else "yes" if size.merges else "no"
    return [f"{size.trainable:,}", f"{size.stored_bytes / 1e6:.3g}", f"{size.held_bytes / 1e6:.3g}", merges]
