"""Rows that begin alike carry their beginning once: an instruction, the system part of a chat, a document under many questions.

    p p p p x x          p p p p x x
    p p p p y y y   ->           y y y         11 tokens of 18; `peftjax.data.packing` draws the arrays
    p p p p z                    z z

Rows sorted by their tokens are a tree: those between two places share the least of what neighbours there share. A run of tokens is shared
where it has at least `SHORTEST` tokens beyond the run that it continues; shorter ones would save little and bring alike rows together in a
batch. Each group is packed into blocks that fit below its run, and the blocks are items of the packing around it: a group that is too
large for a line is cut, and its run stands once in each of its lines.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from peftjax.data.packing import Line, Rows, pack

SHORTEST = 16


class _Block(NamedTuple):
    """Rows that go into one line together: the tokens that they add below what the group around them shares, and their loss tokens."""

    size: int
    loss: int
    members: Line


class Prefixes:
    """What each of some `rows`, those `among` them, shares with others: these rows sorted by their tokens, and how many of its first tokens
    each shares with the one before it in that order. A row never shares its last token, so that it adds at least one wherever it stands."""

    def __init__(self, rows: Rows, among: Sequence[int]):
        tokens = {int(i): rows.row(i) for i in among}
        self.ordered = sorted(tokens, key={i: row.astype(">i4").tobytes() for i, row in tokens.items()}.__getitem__)
        self.common = [0, *(_common(tokens[a], tokens[b]) for a, b in zip(self.ordered, self.ordered[1:], strict=False))]
        self._lengths, self._loss = rows.lengths.tolist(), rows.loss_lengths.tolist()

    def pack(self, rank: Sequence[int], start: int, stop: int, length: int, loss_capacity: int | None = None) -> list[Line]:
        """Lines of at most `length` tokens and `loss_capacity` loss tokens that hold the sorted rows from `start` to `stop` once.

        Args:
            rank: int [R]; rows of equal size are taken in this order.

        Raises:
            ValueError: a row fits into no line.
        """
        return [block.members for block in self._blocks(rank, start, stop, 0, 0, length, loss_capacity)]

    def _blocks(self, rank, start: int, stop: int, depth: int, above: int, length: int, loss_capacity: int | None) -> list[_Block]:
        """Rows that share `depth` tokens, as blocks below a group that shares `above` of these."""
        borders = [start, *(i for i in range(start + 1, stop) if self.common[i] < depth + SHORTEST), stop]
        items = []
        for a, b in zip(borders, borders[1:], strict=False):
            if b - a == 1:
                row = self.ordered[a]
                items.append(_Block(self._lengths[row] - depth, self._loss[row], [(row, depth)]))
            else:
                items += self._blocks(rank, a, b, min(self.common[a + 1 : b]), depth, length, loss_capacity)
        items.sort(key=lambda item: rank[item.members[0][0]])
        bins = pack([item.size for item in items], length - depth, [item.loss for item in items], loss_capacity)
        return [_joined([items[i] for i in chosen], depth, above) for chosen in bins]


def _joined(items: Sequence[_Block], depth: int, above: int) -> _Block:
    """One block of several that share `depth` tokens, of which the group around shares `above`."""
    members = [member for item in items for member in item.members]
    members[0] = (members[0][0], above)
    return _Block(depth - above + sum(item.size for item in items), sum(item.loss for item in items), members)


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two rows begin with alike, less than either has."""
    both = min(len(first), len(second)) - 1
    differ = first[:both] != second[:both]
    return int(differ.argmax()) if differ.any() else both
