"""What a study stores, from which its report is made again without any run.

    tables/plan.json       the study's config, the treatments with their sizes, and what was measured of their costs
    tables/trials.json     every trial of a learning rate with its score on validation
    tables/runs.json       every seed of every cell: rate, loss, forgetting, bytes, learning curve, settings, or its error
    tables/items.csv.gz    every test item of every run: data, budget, size, method, seed, id, group, nll, tokens, and each metric
"""

import csv
import dataclasses
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftjax.files import replacing

FOLDER = "tables"
CELL = ("data", "budget", "size", "method", "seed", "id", "group", "nll", "tokens")
NUMBERS = ("size", "seed", "tokens")


@dataclasses.dataclass(frozen=True)
class Tables:
    """The tables as plain data. An item of a combination of adapters has its way, as "average", in `combined`, else ""."""

    plan: dict[str, Any]
    trials: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    items: list[dict[str, Any]]

    def write(self, workdir: Path) -> None:
        """Stores all of them, each whole."""
        for name in ("plan", "trials", "runs"):
            with replacing(workdir / FOLDER / f"{name}.json") as partial:
                partial.write_text(json.dumps(getattr(self, name), indent=1) + "\n")
        with replacing(workdir / FOLDER / "items.csv.gz") as partial:
            partial.write_bytes(packed(self.items))


def read(workdir: Path) -> Tables:
    """The stored tables.

    Raises:
        FileNotFoundError: the study has stored none yet.
    """
    folder = Path(workdir) / FOLDER
    plain = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("plan", "trials", "runs")}
    return Tables(**plain, items=unpacked((folder / "items.csv.gz").read_bytes()))


def packed(items: Sequence[dict[str, Any]]) -> bytes:
    """Items as gzipped CSV, the same bytes for the same items. A metric that an item has not is an empty cell."""
    metrics = sorted({name for item in items for name in item} - {*CELL, "combined"})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*CELL, "combined", *metrics], restval="")
    writer.writeheader()
    writer.writerows(items)
    return gzip.compress(text.getvalue().encode("utf-8", errors="backslashreplace"), mtime=0)


def unpacked(content: bytes) -> list[dict[str, Any]]:
    """The items of `packed`, numbers as numbers."""
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(content).decode(), newline="")))
    texts = {"data", "budget", "method", "id", "group", "combined"}
    return [
        {name: value if name in texts else int(value) if name in NUMBERS else float(value) for name, value in row.items()
         if value != "" or name in texts}
        for row in rows
    ]
