"""The batch at step s as a pure function of (seed, s), on any number of hosts; evaluation batches; background prefetch.

    order of epoch e = argsort of Philox(seed, e);  its rows are laid out (`peftjax.data.layouts`) as units, lines or whole batches, which
    are shuffled;  the units of all epochs are one sequence, from which each step takes the next that make a batch of B lines;
    process p of P takes lines p*B/P to (p+1)*B/P

The state of the data is the step alone: nothing is saved, and a run resumed on other hosts sees the same global batches. Every
row is seen once an epoch. How many units an epoch has can differ by a few from epoch to epoch, as each is packed anew.
Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

import bisect
import collections
import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from peftjax.data.layouts import Shape, Unit, make_layout
from peftjax.data.packing import Batch, Line, Rows, assemble

T = TypeVar("T")
_END = object()


class Batches:
    """Training batches of about B = `batch_size` lines of T = `length` tokens, in a layout with static shapes.

    Args:
        layout: "packed", "buckets" or "rows", see `peftjax.data.layouts`.
        share: whether rows that begin alike carry their beginning once: "on", "off", or "auto" where that saves at least 5 %; for models
            in which a token sees earlier ones only.
        loss_slots: M of a packed layout; by default the cheapest.

    Raises:
        ValueError: rows longer than `length`, or a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        length: int,
        seed: int,
        layout: str = "packed",
        share: str = "off",
        process_index: int = 0,
        process_count: int = 1,
        loss_slots: int | None = None,
    ):
        self._process = process_index, process_count
        _share(batch_size, *self._process)
        _check_rows(rows, length)
        self.rows, self._seed = rows, seed
        self._layout = make_layout(layout, rows, batch_size, length, _shuffle(len(rows), seed, 0, 0), share, loss_slots)
        self._lock = threading.Lock()
        self._starts = [0]  # The number of the first unit of each epoch known so far, and of the one after.
        self._epochs: collections.OrderedDict[int, list[Unit]] = collections.OrderedDict()
        first = self._units(0)
        self.steps_per_epoch = math.ceil(len(first) / self._layout.batch_units)
        self.shapes = tuple(sorted({unit.shape for unit in first}))

    def at(self, step: int) -> Batch:
        """This process's lines of the global batch at `step` >= 0: arrays [lines / process_count, ...] of one of `shapes`."""
        units = []
        for number in range(step * self._layout.batch_units, (step + 1) * self._layout.batch_units):
            epoch, within = self._locate(number)
            units.append(self._units(epoch)[within])
        return self._assemble([line for unit in units for line in unit.lines], units[0].shape)

    def empty(self, shape: Shape) -> Batch:
        """A batch of padding of this shape: what the batches of it are, to compile for."""
        return self._assemble([], shape)

    def epoch(self, step: int) -> float:
        """How many epochs lie before `step`, the current one counted by its share of units."""
        epoch, within = self._locate(step * self._layout.batch_units)
        return epoch + within / len(self._units(epoch))

    def rows_seen(self, step: int) -> int:
        """Rows in the global batches of all steps before `step`; a row counts once an epoch."""
        epoch, within = self._locate(step * self._layout.batch_units)
        return epoch * len(self.rows) + sum(len(line) for unit in self._units(epoch)[:within] for line in unit.lines)

    @property
    def report(self) -> dict[str, float]:
        """Of the first epoch: the part of computed tokens that are no padding, the part of the rows' tokens that other rows carry for them,
        and tokens and loss slots computed a row."""
        units, per_batch, count = self._units(0), self._layout.batch_units, len(self.rows)
        written = sum(int(self.rows.lengths[row]) - begun for unit in units for line in unit.lines for row, begun in line)
        tokens, slots = (sum(unit.shape.lines * unit.shape[i] for unit in units) / per_batch for i in (1, 2))
        found = {
            "fill": written / tokens, "shared tokens": 1 - written / int(self.rows.lengths.sum()), "tokens a row": tokens / count,
            "loss slots a row": slots / count,
        }
        return {name: round(value, 4) for name, value in found.items()}

    def _assemble(self, lines: list[Line], shape: Shape) -> Batch:
        lines = lines + [[]] * (shape.lines - len(lines))
        return assemble(self.rows, lines[_share(shape.lines, *self._process)], shape.length, shape.loss_slots, shared=self._layout.shared)

    def _locate(self, unit: int) -> tuple[int, int]:
        """(epoch, number within it) of a unit."""
        if unit < 0:
            raise ValueError(f"step is {unit // self._layout.batch_units}; steps count from 0")
        while unit >= self._starts[-1]:
            self._units(len(self._starts) - 1)
        epoch = bisect.bisect_right(self._starts, unit) - 1
        return epoch, unit - self._starts[epoch]

    def _units(self, epoch: int) -> list[Unit]:
        """The shuffled units of an epoch; the two last asked for are kept."""
        with self._lock:
            if epoch not in self._epochs:
                units = self._layout.units(_shuffle(len(self.rows), self._seed, epoch, 0))
                self._epochs[epoch] = [units[index] for index in _shuffle(len(units), self._seed, epoch, 1)]
                if epoch == len(self._starts) - 1:
                    self._starts.append(self._starts[-1] + len(units))
                while len(self._epochs) > 2:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(epoch)
            return self._epochs[epoch]


def eval_batches(
    rows: Rows, batch_size: int, length: int, share: str = "off", process_index: int = 0, process_count: int = 1
) -> list[Batch]:
    """All rows exactly once, packed, in batches of one shape whose `rows` map loss positions to token rows; filled with padding.

    `share` is as in `Batches`.
    """
    taken = _share(batch_size, process_index, process_count)
    _check_rows(rows, length)
    layout = make_layout("packed", rows, batch_size, length, np.arange(len(rows)), share)
    units = layout.units(np.arange(len(rows)))
    lines, shape = [line for unit in units for line in unit.lines], units[0].shape
    lines += [[]] * (-len(lines) % batch_size)
    return [
        assemble(rows, lines[start : start + batch_size][taken], length, shape.loss_slots, shared=layout.shared, with_rows=True)
        for start in range(0, len(lines), batch_size)
    ]


@contextlib.contextmanager
def prefetch(make_iterator: Callable[[], Iterator[T]], depth: int = 2) -> Iterator[Iterator[T]]:
    """Runs an iterator in a background thread, up to `depth` items ahead; its errors are raised where the item is asked for.

        with prefetch(lambda: map(batches.at, range(start, stop))) as stream:
            for batch in stream: ...

    The thread has ended when the block is left, however it is left.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        iterator = make_iterator()
        ahead = collections.deque(pool.submit(next, iterator, _END) for _ in range(depth))

        def stream() -> Iterator[T]:
            while ahead:
                item = ahead.popleft().result()
                if item is _END:
                    return
                ahead.append(pool.submit(next, iterator, _END))
                yield item

        try:
            yield stream()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"a batch of {batch_size} lines cannot be shared evenly by {process_count} processes (this is process {process_index})"
        )
    each = batch_size // process_count
    return slice(process_index * each, (process_index + 1) * each)


def _check_rows(rows: Rows, length: int) -> None:
    if not len(rows):
        raise ValueError("there are no rows to make batches of")
    longer = int((rows.lengths > length).sum())
    if longer:
        raise ValueError(f"{longer} of {len(rows)} rows are longer than the batch's {length} tokens; the longest has {rows.lengths.max()}")


def _shuffle(count: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """int64 [count], a permutation; raw Philox output, as it stays the same in every version of numpy."""
    raw = np.random.Philox(np.random.SeedSequence([seed, epoch, stream])).random_raw(count)
    return np.argsort(raw, kind="stable")
