"""Points of a sweep: flat dicts of dotted config fields and their values, and the ways to list them.

    product({"optimizer.learning_rate": (1e-3, 3e-3), "peft[0].rank": (4, 8)})            # 4 points
    product(zipit({"peft[0].rank": (4, 16), "peft[0].alpha": (8, 32)}), seeds)            # lists of points multiply as well
    chain(loras, adapters)                                                                # one list after the other
    sample(16, {"optimizer.learning_rate": log_uniform(1e-4, 1e-2), "peft[0].rank": choice(4, 8, 16)}, seed=0)
    fixed({"train.steps": 200})                                                           # one point

A config file lists its points in `def sweep()`. A point means the same on any config that has its fields: `with_point(config, point)`.
The form is that of big_vision's and kauldron's sweeps: data, so that they can be stored, compared and packed.
"""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import math
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from peftjax.hints import did_you_mean
from peftjax.peft.spec import from_data, to_data
from peftjax.train.config import OPEN, methods

Point = dict[str, Any]
Fields = Mapping[str, Sequence[Any]]  # field -> its values


def fixed(values: Mapping[str, Any]) -> list[Point]:
    """One point."""
    return [dict(values)]


def product(*parts: Fields | Sequence[Point], **fields: Sequence[Any]) -> list[Point]:
    """Every combination of one from each part; the last part varies fastest.

    Args:
        parts: a mapping from fields to lists of values, of which each field counts as a part, or a list of points.
        fields: as a mapping.

    Raises:
        ValueError: two parts set one field.
    """
    lists = [points for part in (*parts, fields) for points in _factors(part)]
    return [_joined(combination) for combination in itertools.product(*lists)]


def zipit(*parts: Fields | Sequence[Point], **fields: Sequence[Any]) -> list[Point]:
    """The first of every part together, the second of every part, and so on.

    Raises:
        ValueError: parts of different lengths, or two that set one field.
    """
    lists = [points for part in (*parts, fields) for points in _factors(part)]
    if len({len(points) for points in lists}) > 1:
        found = ", ".join(f"{', '.join(points[0]) if points else 'nothing'}: {len(points)}" for points in lists)
        raise ValueError(f"zipit goes through its parts side by side and needs them of one length; found {found}. product combines all")
    return [_joined(combination) for combination in zip(*lists, strict=True)]


def chain(*parts: Sequence[Point]) -> list[Point]:
    """One list after the other."""
    return [dict(point) for part in parts for point in part]


@dataclasses.dataclass(frozen=True)
class Range:
    """Values that a field is drawn from.

    Attributes:
        values: of a choice; else empty.
        low, high: of a number, both included.
        log: whether its logarithm is uniform.
        whole: whether it is a whole number.
    """

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def at(self, u: float) -> Any:
        """The value at u of [0, 1). Numbers are rounded to four digits, so that they can be read and typed."""
        if self.values:
            return self.values[int(u * len(self.values))]
        if self.whole:
            return int(self.low) + int(u * (self.high - self.low + 1))
        if self.log:
            return float(f"{math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low))):.4g}")
        return float(f"{self.low + u * (self.high - self.low):.4g}")


def choice(*values: Any) -> Range:
    """One of these, each as likely."""
    if not values:
        raise ValueError("choice() has nothing to choose from")
    return Range(values=values)


def uniform(low: float, high: float) -> Range:
    """A number between these; two ints give whole numbers, both included."""
    if not low < high:
        raise ValueError(f"uniform({low}, {high}): the first must be below the second")
    return Range(low=low, high=high, whole=isinstance(low, int) and isinstance(high, int))


def log_uniform(low: float, high: float) -> Range:
    """A number between these, whose logarithm is uniform."""
    if not 0 < low < high:
        raise ValueError(f"log_uniform({low}, {high}): the first must be above 0 and below the second")
    return Range(low=low, high=high, log=True)


def sample(count: int, ranges: Mapping[str, Range], seed: int = 0) -> list[Point]:
    """`count` points, each field drawn by itself. A value is a function of (seed, field, number of the point): a longer sample begins with
    the shorter one, and a field more leaves the others as they were."""

    def draw(number: int, field: str) -> float:
        name = int.from_bytes(hashlib.sha256(field.encode()).digest()[:8], "little")
        raw = np.random.Philox(np.random.SeedSequence([seed, number, name])).random_raw()  # the same in every version of numpy
        return (int(raw) >> 11) / 2.0**53

    return [{field: range_.at(draw(number, field)) for field, range_ in ranges.items()} for number in range(count)]


def given_by(path: str | Path, function: str, example: str) -> tuple[Any, str]:
    """(what `def <function>()` of a config file gives, the file). `path` may have a variant, as in `configs/x.py:runlocal`, which does not
    change it.

    Raises:
        ValueError: the file has no such function; `example` is what it could return.
    """
    file = str(path).partition(":")[0]
    module = runpy.run_path(file)
    if function not in module:
        raise ValueError(f"{file} has no {function}(); add `def {function}(): return {example}`, see peftjax/train/points.py")
    return module[function](), file


def points_of(path: str | Path) -> list[Point]:
    """What `def sweep()` of a config file lists.

    Raises:
        ValueError: as `given_by`, or it gives something else than points.
    """
    points, file = given_by(path, "sweep", "product({'optimizer.learning_rate': (1e-3, 3e-3)})")
    if not isinstance(points, list | tuple) or not all(isinstance(point, Mapping) for point in points):
        raise ValueError(f"sweep() of {file} gives {points!r:.100}; it must give a list of dicts from dotted fields to values")
    return [dict(point) for point in points]


def ranges_of(path: str | Path) -> dict[str, Range]:
    """What `def search()` of a config file draws from.

    Raises:
        ValueError: as `given_by`, or it gives something else than ranges.
    """
    ranges, file = given_by(path, "search", "{'optimizer.learning_rate': log_uniform(1e-4, 1e-2)}")
    if not isinstance(ranges, Mapping) or not all(isinstance(one, Range) for one in ranges.values()):
        raise ValueError(
            f"search() of {file} gives {ranges!r:.100}; it must give a dict from dotted fields to log_uniform, uniform or choice"
        )
    return dict(ranges)


def with_point(config: ConfigDict, point: Mapping[str, Any]) -> ConfigDict:
    """A copy of the config with the fields of the point set; whole fields before parts of them, so that {"peft": [...], "peft[0].rank": 8}
    is what it looks like. Methods may be objects or data.

    Raises:
        ValueError: a field that does not exist, with the nearest one, or a value of another type than the field's.
    """
    config = copy.deepcopy(config)
    for field in sorted(point, key=lambda field: len(_steps(field))):
        *inner, last = _steps(field)
        holder, seen = config, "config"
        for step in inner:
            holder, seen = _inside(holder, step, seen), f"{seen}{_shown(step)}"
        try:
            _set(holder, last, point[field], seen)
        except TypeError as error:
            kind = type(_inside(holder, last, seen)).__name__
            raise ValueError(f"config.{field} cannot be {point[field]!r}: it is of type {kind}") from error
    return config


def as_data(point: Mapping[str, Any]) -> Point:
    """The point as JSON-able data: methods as theirs, tuples as lists. It means the same to `with_point`."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        if isinstance(value, ConfigDict):
            return plain(value.to_dict())
        if isinstance(value, Mapping):
            return {name: plain(child) for name, child in value.items()}
        return plain(to_data(value)) if dataclasses.is_dataclass(value) else value

    return json.loads(json.dumps({field: plain(value) for field, value in point.items()}))


def label(point: Mapping[str, Any]) -> str:
    """`learning_rate=0.001 rank=8`: the last names of the fields, whole ones where two end alike; methods by their names."""
    short = {field: re.split(r"[.\]]", field)[-1] or field for field in point}
    twice = {name for name in short.values() if list(short.values()).count(name) > 1}
    return " ".join(f"{field if short[field] in twice else short[field]}={_value(value)}" for field, value in point.items())


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_value, value))
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    if isinstance(value, Mapping) and "method" in value:
        return str(value["method"])
    return f"{value:g}" if isinstance(value, float) else str(value)


def _factors(part: Fields | Sequence[Point]) -> list[list[Point]]:
    """The lists of points that a part stands for."""
    if not isinstance(part, Mapping):
        return [list(part)]
    for field, values in part.items():
        if isinstance(values, str) or not isinstance(values, Sequence | range):
            raise ValueError(f"{field} has {values!r}; give a list of values, one value as [{values!r}]")
    return [[{field: value} for value in values] for field, values in part.items()]


def _joined(points: Sequence[Point]) -> Point:
    whole: Point = {}
    for point in points:
        if twice := whole.keys() & point.keys():
            raise ValueError(f"two parts set {', '.join(sorted(twice))}: one field can have one value in a point")
        whole |= point
    return whole


def _steps(field: str) -> list[str | int]:
    """`peft[0].rank` -> ["peft", 0, "rank"]."""
    if not re.fullmatch(r"[^.\[\]]+(\[\d+\])*(\.[^.\[\]]+(\[\d+\])*)*", field):
        raise ValueError(f"{field!r} is no dotted field; write it as in 'optimizer.learning_rate' or 'peft[0].rank'")
    return [int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", field)]


def _shown(step: str | int) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{step}"


def _inside(holder: Any, step: str | int, seen: str) -> Any:
    if isinstance(step, int):
        if not isinstance(holder, list | tuple) or step >= len(holder):
            found = f"{seen} has {len(holder)} entries" if isinstance(holder, list | tuple) else f"{seen} is no list"
            raise ValueError(f"{seen}[{step}] is not there: {found}")
        return holder[step]
    if not isinstance(holder, ConfigDict) or step not in holder:
        raise _unknown(holder, step, seen)
    return holder[step]


def _unknown(holder: Any, step: str, seen: str) -> ValueError:
    known = list(holder) if isinstance(holder, ConfigDict) else []
    fields = f"; fields are {', '.join(known)}" if known else f"; {seen} has no fields"
    return ValueError(f"{seen}.{step} is not a field{did_you_mean(str(step), known)}{fields}")


def _set(holder: Any, step: str | int, value: Any, seen: str) -> None:
    if seen == "config" and step == "peft":
        value = methods([from_data(one) if isinstance(one, Mapping) else one for one in value])
    elif seen == "config" and step == "adapters":
        value = [ConfigDict(one) for one in value]
    elif isinstance(step, int) or (isinstance(holder, ConfigDict) and step not in holder and seen.rpartition(".")[2] not in OPEN):
        _inside(holder, step, seen)
    if isinstance(step, int):
        holder[step] = methods(value)[0] if dataclasses.is_dataclass(value) else value
    else:
        # a config from the command line is locked, its free mappings with it
        with holder.unlocked() if isinstance(holder, ConfigDict) else contextlib.nullcontext():
            holder[step] = value
