"""Rows packed into fixed shapes, several to a line, none seeing another.

    tokens          [B, T]  a a a a b b b 0
    segments        [B, T]  1 1 1 1 2 2 2 0       0 is padding; attention stays within a segment
    positions       [B, T]  0 1 2 3 0 1 2 0       counted anew in each segment
    loss_positions  [B, M]  1 2 4 5               positions whose next token, in the same segment, carries loss
    targets         [B, M]  a a b b               that next token
    weights         [B, M]  1 1 1 1               0 in unused slots

Rows of classified texts (`peftjax.data.labelled`) carry loss at their first token, whose target is the number of the label, and may have
`types` [B, T], the number of the text of a pair that a token belongs to.
M bounds the positions at which logits are asked for, so that the head need not run on prompts.
First-fit decreasing: Johnson et al., "Worst-case performance bounds for simple one-dimensional packing algorithms", 1974.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Rows(Protocol):
    """What is needed of tokenised rows; all arrays are numpy's.

    lengths, loss_lengths: int [R], tokens of each row, and how many of them carry loss; row(i): int32 ids; row_types(i): int32 token
    types, or None where no row has any; loss(i): positions within the row that carry loss, and their targets.
    """

    lengths: np.ndarray
    loss_lengths: np.ndarray

    def __len__(self) -> int: ...

    def row(self, index: int) -> np.ndarray: ...

    def row_types(self, index: int) -> np.ndarray | None: ...

    def loss(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


class Batch(NamedTuple):
    """A batch of numpy arrays, as the module's docstring draws it: int32, weights float32.

    `rows` int32 [B, S] is there in evaluation only: the token row of segment s of line b is rows[b, s-1], -1 where unused.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    loss_positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    rows: np.ndarray | None = None
    types: np.ndarray | None = None


def pack(
    lengths: Sequence[int],
    capacity: int,
    rows_per_pack: int | None = None,
    loss_lengths: Sequence[int] | None = None,
    loss_capacity: int | None = None,
) -> list[list[int]]:
    """Bins of row indices, each at most `capacity` tokens (and `loss_capacity` loss tokens, and `rows_per_pack` rows).

    Rows are placed longest first, equal ones in the given order, each in the first bin with room. A row that fits nowhere
    raises ValueError.
    """
    lengths = np.asarray(lengths, np.int64)
    loss = np.zeros_like(lengths) if loss_lengths is None else np.asarray(loss_lengths, np.int64)
    loss_capacity = int(loss.max(initial=0)) * len(lengths) if loss_capacity is None else loss_capacity
    rows_per_pack = len(lengths) if rows_per_pack is None else rows_per_pack
    misfits = np.flatnonzero((lengths > capacity) | (loss > loss_capacity))
    if len(misfits):
        raise ValueError(
            f"{len(misfits)} of {len(lengths)} rows fit in no bin of {capacity} tokens and {loss_capacity} loss tokens; "
            f"row {misfits[0]} has {lengths[misfits[0]]} and {loss[misfits[0]]}"
        )
    bins: list[list[int]] = []
    # What is left in each bin: tokens, loss tokens, rows. There are never more bins than rows.
    free = np.zeros((3, len(lengths)), np.int64)
    first_open = 0
    for row in np.argsort(-lengths, kind="stable"):
        need = np.array([lengths[row], loss[row], 1])
        fits = (free[:, first_open : len(bins)] >= need[:, None]).all(axis=0)
        place = first_open + int(fits.argmax()) if fits.any() else len(bins)
        if place == len(bins):
            bins.append([])
            free[:, place] = capacity, loss_capacity, rows_per_pack
        bins[place].append(int(row))
        free[:, place] -= need
        while first_open < len(bins) and not (free[[0, 2], first_open] > 0).all():
            first_open += 1  # Full bins at the front need not be looked at again.
    return bins


def assemble(
    rows: Rows, bins: Sequence[Sequence[int]], length: int, loss_slots: int, row_slots: int | None = None
) -> Batch:
    """The batch of B = len(bins) lines of T = `length` tokens, M = `loss_slots`; an empty bin is a line of padding.

    With `row_slots` = S the batch says in `rows` which token row each segment is. ValueError if a bin needs more than T or M.
    """
    tokens, segments, positions, types = (np.zeros((len(bins), length), np.int32) for _ in range(4))
    loss_positions, targets = (np.zeros((len(bins), loss_slots), np.int32) for _ in range(2))
    weights = np.zeros((len(bins), loss_slots), np.float32)
    row_index = None if row_slots is None else np.full((len(bins), row_slots), -1, np.int32)
    typed = rows.row_types(0) is not None
    for line, members in enumerate(bins):
        start = slot = 0
        for segment, row in enumerate(members, start=1):
            ids, (at, wanted) = rows.row(row), rows.loss(row)
            end, loss_end = start + len(ids), slot + len(at)
            if end > length or loss_end > loss_slots:
                raise ValueError(f"line {line} needs over {length} tokens or {loss_slots} loss slots: rows {list(members)}")
            tokens[line, start:end] = ids
            segments[line, start:end] = segment
            positions[line, start:end] = np.arange(len(ids))
            if typed:
                types[line, start:end] = rows.row_types(row)
            loss_positions[line, slot:loss_end] = start + at
            targets[line, slot:loss_end] = wanted
            weights[line, slot:loss_end] = 1
            start, slot = end, loss_end
        if row_index is not None:
            row_index[line, : len(members)] = members
    return Batch(tokens, segments, positions, loss_positions, targets, weights, row_index, types if typed else None)


def loss_slots_needed(rows: Rows, bins: Sequence[Sequence[int]], multiple: int = 16) -> int:
    """The most loss tokens of any bin, rounded up to a multiple: the M that holds for all of these bins."""
    loss = rows.loss_lengths
    most = max((int(loss[members].sum()) for members in map(list, bins) if members), default=0)
    return max(1, -(-most // multiple)) * multiple
