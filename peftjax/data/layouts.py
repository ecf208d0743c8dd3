"""How the rows of an epoch are laid out in batches of a few static shapes.

| layout  | a line holds                          | shapes                                                             |
|---------|---------------------------------------|--------------------------------------------------------------------|
| packed  | rows, as many as fit                  | one: B lines of T tokens                                           |
| buckets | a row                                 | B·k lines of T/k tokens, k = 1, 2, 3, 4, 6, 8, ..., where rows are |
| rows    | a row                                 | one: B lines of T tokens                                           |

Rows that are for different adapters (`Rows.routes`) go into lines of their own. A step has about B·T tokens in each of the layouts. An
epoch is a sequence of units: lines of a packed layout, of which the next B make a batch,
the last of an epoch together with the first of the next; or whole batches. In buckets the rows that do not fill a batch go to the next
longer bucket, so that one batch of an epoch at most has lines of padding.
"""

import dataclasses
import math
from typing import NamedTuple, Protocol

import numpy as np

from peftjax.data.packing import Line, Rows, grain, pack, rounded
from peftjax.data.prefixes import Prefixes
from peftjax.hints import did_you_mean

LAYOUTS = ("packed", "buckets", "rows")
SHARING = ("auto", "on", "off")
# Rows packed together. Larger windows leave fewer lines half empty, smaller ones bring other rows together in each epoch.
_WINDOW = 4096
# Prefixes are shared on their own accord where that saves this part of the lines.
_WORTH = 0.05
# What a slot of the head costs beside a token of the trunk, about, in models of up to a billion parameters.
_SLOT_COST = 0.25
_SHORTEST_BUCKET = 16


class Shape(NamedTuple):
    """Of a batch: B lines of T tokens with M loss slots."""

    lines: int
    length: int
    loss_slots: int


class Unit(NamedTuple):
    """Lines that come into one batch together, and the shape of that batch."""

    lines: list[Line]
    shape: Shape


class Layout(Protocol):
    """shared: whether rows share prefixes; batch_units: units that make a batch; units(order): an epoch of the rows in this order."""

    shared: bool
    batch_units: int

    def units(self, order: np.ndarray) -> list[Unit]: ...


def make_layout(
    name: str, rows: Rows, batch_size: int, length: int, order: np.ndarray, share: str = "off", loss_slots: int | None = None
) -> Layout:
    """The layout of this name for B = `batch_size` and T = `length`.

    Args:
        order: of the rows in the first epoch, with which the choices are made that are left open.
        share: "on", "off", or "auto": where it saves at least 5 % of the lines. Rows share prefixes in a packed layout only.
        loss_slots: M of a packed layout; by default the cheapest.

    Raises:
        ValueError: no such layout or way of sharing.
    """
    for asked, allowed in ((name, LAYOUTS), (share, SHARING)):
        if asked not in allowed:
            raise ValueError(f"{asked!r} is none of {', '.join(allowed)}{did_you_mean(asked, allowed)}")
    if share == "on" and name != "packed":
        raise ValueError(f"rows share prefixes in a packed layout only; this one is {name!r}")
    if name == "packed":
        return _packed(rows, batch_size, length, order, share, loss_slots)
    if name == "buckets":
        return _bucketed(rows, batch_size, length)
    return Buckets(rows, (Shape(batch_size, length, rounded(int(rows.loss_lengths.max()), grain(rows))),))


@dataclasses.dataclass(frozen=True)
class Packed:
    """Lines of several rows of at most `length` tokens and `loss_slots` loss tokens (None: no limit), sharing what `prefixes` has, one for
    the rows of each kind."""

    rows: Rows
    batch_size: int
    length: int
    loss_slots: int | None
    prefixes: tuple[Prefixes, ...] | None = None

    @property
    def shared(self) -> bool:
        return self.prefixes is not None

    @property
    def batch_units(self) -> int:
        return self.batch_size

    def units(self, order: np.ndarray) -> list[Unit]:
        shape = Shape(self.batch_size, self.length, self.loss_slots)
        return [Unit([line], shape) for line in self.lines(order)]

    def lines(self, order: np.ndarray, every: int = 1) -> list[Line]:
        """The lines of all windows of rows, or of every `every`-th window."""
        lengths, loss, lines = self.rows.lengths, self.rows.loss_lengths, []
        rank = np.argsort(order).tolist()
        for kind, own in enumerate(_kinds(self.rows, order)):
            for start in range(0, len(own), every * _WINDOW):
                stop = min(start + _WINDOW, len(own))
                if self.prefixes is not None:  # a window of rows that begin alike
                    lines += self.prefixes[kind].pack(rank, start, stop, self.length, self.loss_slots)
                else:
                    window = own[start:stop]
                    bins = pack(lengths[window], self.length, loss[window], self.loss_slots)
                    lines += [[(int(window[item]), 0) for item in chosen] for chosen in bins]
        return lines


def _kinds(rows: Rows, order: np.ndarray) -> list[np.ndarray]:
    """The rows in this order, apart by what they are for."""
    if not rows.routes:
        return [order]
    kinds = np.unique(np.stack([*rows.routes.values()], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    return [order[kinds[order] == kind] for kind in range(kinds.max() + 1)]


def _packed(rows: Rows, batch_size: int, length: int, order: np.ndarray, share: str, loss_slots: int | None) -> Packed:
    every = max(1, math.ceil(len(rows) / _WINDOW) // 2)
    plain = Packed(rows, batch_size, length, loss_slots)
    if share != "off":
        shared = dataclasses.replace(plain, prefixes=tuple(Prefixes(rows, own) for own in _kinds(rows, np.arange(len(rows)))))
        saved = 1 - len(shared.lines(order)) / len(plain.lines(order))
        plain = shared if share == "on" or saved >= _WORTH else plain
    return plain if loss_slots is not None else _cheapest(plain, order, every)


def _cheapest(layout: Packed, order: np.ndarray, every: int) -> Packed:
    """With the M at which lines of T tokens and M slots cost least, seen on some windows: as many as any line carries, or fewer, for which
    part of each line that carries more goes into lines of its own."""
    free, loss = layout.lines(order, every), layout.rows.loss_lengths
    carried = np.array([loss[[row for row, _ in line]].sum() for line in free])
    step, cost = grain(layout.rows), _SLOT_COST + layout.rows.virtual
    slots = np.arange(rounded(int(loss.max()), step), rounded(int(carried.max()), step) + 1, step)
    more = np.maximum(0, 1 - slots[:, None] / np.maximum(carried, 1)).sum(axis=1)
    likely = slots[np.argmin((len(free) + more) * (layout.length + cost * slots))]
    tried = [dataclasses.replace(layout, loss_slots=int(limit)) for limit in (likely, slots[-1])]
    costs = [len(each.lines(order, every)) * (each.length + cost * each.loss_slots) for each in tried]
    return tried[int(np.argmin(costs))]


@dataclasses.dataclass(frozen=True)
class Buckets:
    """A row to a line, in batches of one of `shapes`, from the shortest to the longest."""

    rows: Rows
    shapes: tuple[Shape, ...]

    shared = False
    batch_units = 1

    def units(self, order: np.ndarray) -> list[Unit]:
        bucket = np.searchsorted([shape.length for shape in self.shapes], self.rows.lengths[order])
        units, waiting = [], np.zeros(0, np.int64)
        for number, shape in enumerate(self.shapes):
            waiting = np.concatenate([waiting, order[bucket == number]])
            stop = len(waiting) if number == len(self.shapes) - 1 else len(waiting) // shape.lines * shape.lines
            for start in range(0, stop, shape.lines):
                units.append(Unit([[(int(row), 0)] for row in waiting[start : min(start + shape.lines, stop)]], shape))
            waiting = waiting[stop:]
        return units


def _bucketed(rows: Rows, batch_size: int, length: int) -> Buckets:
    """Buckets up to the longest row. Lengths are multiples of 8, of those that round to the same the one with the most lines."""
    halves = [k for power in range(length.bit_length()) for k in (2**power, 3 * 2**power)]
    parts = {max(8, length // k // 8 * 8) if k > 1 else length: k for k in sorted(halves) if length // k >= _SHORTEST_BUCKET or k == 1}
    lengths = sorted(parts)
    lengths = lengths[: 1 + int(np.searchsorted(lengths, rows.lengths.max()))]
    most = [int(rows.loss_lengths[rows.lengths <= size].max(initial=0)) for size in lengths]
    slots = [rounded(loss, grain(rows)) for loss in most]
    return Buckets(rows, tuple(Shape(batch_size * parts[size], size, count) for size, count in zip(lengths, slots, strict=True)))
