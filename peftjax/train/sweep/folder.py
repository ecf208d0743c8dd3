"""The folder of a sweep: which points it has, and where each is trained.

    sweep.json                                        the config without points, and every point with the name of its run
    learning_rate=0.001_rank=8-1f0c2a9b/              a work directory, as of any run; its config.json is there from the start
    learning_rate=0.001_rank=8-1f0c2a9b/train.log     what its process printed, where a process of its own trained it
    sweep.md, sweep.png                               the comparison

The same command goes on with it. Points may be added; the config that they are set on may not change.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.files import locked, replacing
from peftjax.train.config import check, config_hash, differences, flatten_data, plain
from peftjax.train.ending import Outcome, read_outcome
from peftjax.train.points import Point, as_data, label, with_point
from peftjax.train.workdir import FREE

FILE = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """A point with its place.

    Attributes:
        point: as data.
        config: the sweep's config with the point set, checked.
        folder: the work directory.
    """

    point: Point
    config: ConfigDict
    folder: Path

    @property
    def outcome(self) -> Outcome:
        """How it ended, or that it did not."""
        return read_outcome(self.folder)


def default_folder(name: str, config: ConfigDict, points: Sequence[Point]) -> Path:
    """`runs/sweeps/<config's file name>[-<variant>]-<hash of config and points>`."""
    file, _, variant = str(name).partition(":")
    asked = json.dumps([config_hash(config), [as_data(point) for point in points]], sort_keys=True)
    return Path("runs") / "sweeps" / "-".join(
        part for part in (Path(file).stem, variant, hashlib.sha256(asked.encode()).hexdigest()[:8]) if part
    )


def plan(config: ConfigDict, points: Sequence[Mapping[str, Any]], folder: str | Path) -> list[Run]:
    """A run for each point, in their order, noted in the folder's `sweep.json`; the configs are stored where the runs will be.

    Points that come to the same config have the same run, named after the first of them.

    Raises:
        ValueError: a point that does not fit the config, or a folder that holds a sweep of another config, with the differences.
    """
    folder = Path(folder)
    if not points:
        raise ValueError("the sweep has no points")
    made = [(as_data(point), _with(config, as_data(point))) for point in points]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        there = _read(folder)
        if there is not None:
            changed = differences(_compared(plain(config)), _compared(there["config"]))
            if changed:
                raise ValueError(f"{folder} holds a sweep of another config (asked | there): {'; '.join(changed)}. Name another --folder")
        known = {entry["run"].rpartition("-")[2]: entry for entry in (there or {"points": []})["points"]}
        runs = []
        for point, whole in made:
            entry = known.setdefault(config_hash(whole), {"run": f"{_name(point)}-{config_hash(whole)}", "point": point})
            runs.append(Run(point, whole, folder / entry["run"]))
        with replacing(folder / FILE) as partial:
            partial.write_text(json.dumps({"config": plain(config), "points": list(known.values())}, indent=1))
    for run in runs:
        stored = run.folder / "config.json"
        if not stored.exists():
            with replacing(stored) as partial:
                partial.write_text(json.dumps(plain(run.config), indent=1, sort_keys=True))
    return runs


def planned(folder: str | Path) -> list[tuple[Point, Path]]:
    """(point, work directory) of everything that was ever asked of the folder, in that order.

    Raises:
        FileNotFoundError: no sweep lies there.
    """
    stored = _read(Path(folder))
    if stored is None:
        raise FileNotFoundError(f"{folder} has no {FILE}: no sweep was started in it")
    return [(entry["point"], Path(folder) / entry["run"]) for entry in stored["points"]]


def _with(config: ConfigDict, point: Point) -> ConfigDict:
    made = with_point(config, point)
    try:
        check(made)
    except ValueError as error:
        raise ValueError(f"point {label(point) or '(none)'}: {error}") from error
    return made


def _name(point: Point) -> str:
    """The label of a point, as far as it can be the name of a folder."""
    return re.sub(r"[^\w.=+-]+", "_", label(point))[:80] or "default"


def _read(folder: Path) -> dict | None:
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else None


def _compared(config: dict) -> dict[str, Any]:
    return {name: value for name, value in flatten_data(config).items() if not name.startswith(FREE)}
