"""Members' batches on each other: [W, B, ...], made of one form where their data sets differ."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from peftjax.data.packing import Batch


def padding(batches: Sequence[Batch]) -> Batch:
    """The batch of padding whose form all of these can take: with the most loss slots, and `until` and `types` where any has them.

    Raises:
        ValueError: batches of different numbers of lines or tokens.
    """
    sizes = {batch.tokens.shape for batch in batches}
    if len(sizes) > 1:
        raise ValueError(f"members of one stack have batches of one shape; these have {sorted(sizes)}")
    widest = max(batches, key=lambda batch: batch.targets.shape[1])
    none = np.zeros_like(widest.tokens)
    return jax.tree.map(np.zeros_like, widest._replace(**{
        name: none if any(getattr(batch, name) is not None for batch in batches) else None for name in ("until", "types")
    }))


def stacked(batches: Mapping[int, Batch], like: Batch, width: int) -> Batch:
    """Batches [B, ...] by place, in the form of `like` and in arrays of `width` places; free ones hold padding."""
    given = {place: _alike(batch, like) for place, batch in batches.items()}

    def stack(padding: np.ndarray, *parts: np.ndarray) -> np.ndarray:
        out = np.zeros((width, *padding.shape), padding.dtype)
        for place, part in zip(given, parts, strict=True):
            out[place] = part
        return out

    return jax.tree.map(stack, like, *given.values())


def _alike(batch: Batch, like: Batch) -> Batch:
    room = ((0, 0), (0, like.targets.shape[1] - batch.targets.shape[1]))
    batch = batch._replace(**{name: np.pad(getattr(batch, name), room) for name in ("loss_positions", "targets", "weights")})
    if like.until is not None and batch.until is None:
        batch = batch._replace(until=_ends(batch.segments))
    if like.types is not None and batch.types is None:
        batch = batch._replace(types=np.zeros_like(batch.tokens))
    return batch


def _ends(segments: np.ndarray) -> np.ndarray:
    """For lines without shared prefixes [B, T], the slot after the last token that sees each: the end of its segment."""
    length = segments.shape[1]
    ends = np.zeros_like(segments)
    for line, row in enumerate(segments):
        borders = np.flatnonzero(np.diff(row)) + 1
        stops = np.append(borders, length)
        ends[line] = np.repeat(stops, np.diff(np.concatenate([[0], stops])))
    return np.where(segments > 0, ends, 0)
