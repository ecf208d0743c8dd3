"""The batch at step s as a pure function of (seed, s), on any number of hosts; evaluation batches; background prefetch.

    order of epoch e = argsort of Philox(seed, e);  its rows are packed in windows of that order;  the bins are shuffled and
    cut into global batches of B lines;  process p of P takes lines p*B/P to (p+1)*B/P

The state of the data is the step alone: nothing is saved, and a run resumed on other hosts sees the same global batches. Every
row is seen once an epoch; the last batch is filled up with lines of padding. How many batches an epoch has can differ by a few
from epoch to epoch, as each is packed anew.
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

from peftjax.data.packing import Batch, Rows, assemble, loss_slots_needed, pack

T = TypeVar("T")
# Rows packed together: enough that under 3 % of the tokens are padding, few enough that batches stay mixed.
_WINDOW = 1024
_END = object()


class Batches:
    """Training batches of B = `batch_size` lines (this process's share of them) of T = `length` tokens.

    `loss_slots` is M; by default the smallest that costs next to no extra lines. With `pack=False` each line holds one row.
    Raises ValueError for rows longer than `length` and for a batch that the processes cannot share evenly.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        length: int,
        seed: int,
        pack: bool = True,
        process_index: int = 0,
        process_count: int = 1,
        loss_slots: int | None = None,
    ):
        self._lines = _share(batch_size, process_index, process_count)
        _check_rows(rows, length)
        self._rows, self.batch_size, self.length, self._seed, self._pack = rows, batch_size, length, seed, pack
        self._lock = threading.Lock()
        self._starts = [0]  # The first step of each epoch known so far, and of the one after.
        self._epochs: collections.OrderedDict[int, list[list[int]]] = collections.OrderedDict()
        self.loss_slots = loss_slots or self._choose_loss_slots()
        self.steps_per_epoch = self._steps(self._bins(0))

    def at(self, step: int) -> Batch:
        """This process's lines of the global batch at `step` >= 0: arrays [B / process_count, ...]."""
        epoch, within = self._locate(step)
        bins = self._bins(epoch)[within * self.batch_size : (within + 1) * self.batch_size]
        bins = bins + [[]] * (self.batch_size - len(bins))
        return assemble(self._rows, bins[self._lines], self.length, self.loss_slots)

    def epoch(self, step: int) -> float:
        """How many epochs lie before `step`, the current one counted by its share of steps."""
        epoch, within = self._locate(step)
        return epoch + within / self._steps(self._bins(epoch))

    def rows_seen(self, step: int) -> int:
        """Rows in the global batches of all steps before `step`; a row counts once an epoch."""
        epoch, within = self._locate(step)
        return epoch * len(self._rows) + sum(map(len, self._bins(epoch)[: within * self.batch_size]))

    def _locate(self, step: int) -> tuple[int, int]:
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        while step >= self._starts[-1]:
            self._bins(len(self._starts) - 1)
        epoch = bisect.bisect_right(self._starts, step) - 1
        return epoch, step - self._starts[epoch]

    def _steps(self, bins: list[list[int]]) -> int:
        return math.ceil(len(bins) / self.batch_size)

    def _bins(self, epoch: int) -> list[list[int]]:
        """The shuffled bins of an epoch; the two last asked for are kept."""
        with self._lock:
            if epoch not in self._epochs:
                bins = self._packed(epoch, self.loss_slots)
                self._epochs[epoch] = [bins[index] for index in _shuffle(len(bins), self._seed, epoch, 1)]
                if epoch == len(self._starts) - 1:
                    self._starts.append(self._starts[-1] + self._steps(bins))
                while len(self._epochs) > 2:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(epoch)
            return self._epochs[epoch]

    def _packed(self, epoch: int, loss_slots: int | None) -> list[list[int]]:
        order = _shuffle(len(self._rows), self._seed, epoch, 0)
        if not self._pack:
            return [[int(row)] for row in order]
        lengths, loss = self._rows.lengths, self._rows.loss_lengths
        bins = []
        for start in range(0, len(order), _WINDOW):
            window = order[start : start + _WINDOW]
            packed = pack(lengths[window], self.length, loss_lengths=loss[window], loss_capacity=loss_slots)
            bins += [[int(window[row]) for row in members] for members in packed]
        return bins

    def _choose_loss_slots(self) -> int:
        """M for all epochs: a little over the average loss tokens of a full line if packing to it costs under 2 % more lines."""
        free = self._packed(0, None)
        loose = loss_slots_needed(self._rows, free)
        longest = int(self._rows.loss_lengths.max())
        average = self.length * self._rows.loss_lengths.sum() / self._rows.lengths.sum()
        tight = max(16, -(-int(max(longest, 1.15 * average)) // 16) * 16)
        if self._pack and tight < loose and len(self._packed(0, tight)) <= 1.02 * len(free):
            return tight
        # Other epochs are packed otherwise, but never beyond this: it is their capacity too.
        return loose


def eval_batches(
    rows: Rows, batch_size: int, length: int, process_index: int = 0, process_count: int = 1
) -> list[Batch]:
    """All rows exactly once, packed, in batches of one shape whose `rows` map segments to token rows; filled with padding."""
    lines = _share(batch_size, process_index, process_count)
    _check_rows(rows, length)
    bins = pack(rows.lengths, length)
    loss_slots, row_slots = loss_slots_needed(rows, bins), max(map(len, bins))
    bins += [[]] * (-len(bins) % batch_size)
    return [
        assemble(rows, bins[start : start + batch_size][lines], length, loss_slots, row_slots)
        for start in range(0, len(bins), batch_size)
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
