"""Routing: which rows of a batch, or which positions, are whose, in a tree that is composed so (`peftjax.peft.compose`).

    params = compose(params, BatchSplit("lora", "houlsby", Stack("ia3", "prefix")))
    logits = model.apply({"params": route(params, [2, 0, -1, 1])}, tokens)        row 2 by none of them

The numbers are places among the children of the block, and leaves: other numbers are no other program. They may be traced, so a training
step can take them from its batch; values and gradients of a row are those of the row alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.hints import did_you_mean
from peftjax.nn.tree import place, put, walk
from peftjax.peft.composed import Composed, ComposedEntry
from peftjax.peft.composition import BatchSplit, Split, blocks
from peftjax.peft.rows import RowContext


def route(params: dict, ids: Sequence[int] | np.ndarray | jax.Array, at: str | None = None) -> dict:
    """A new tree for a batch whose row b is for child ids[b] of its BatchSplit, or whose position t in row b is for child ids[b, t] of its
    Split; -1 is for none.

    Args:
        params: composed with `BatchSplit(...)` or `Split(...)` without sizes.
        ids: int [B], or [B, T] for Split; may be traced.
        at: which of the tree's blocks, by its `at`; needed where they have several.

    Raises:
        ValueError: no such block, a number that is none of its children, or numbers for rows where positions are asked for.
    """
    found = _composed(params)
    asked = [block for value in found.values() for block in _waiting(value)]
    known = routed_by(params)
    at = known[0] if at is None and len(known) == 1 else at
    own = [block for block in asked if block.at == at]
    if at is None and known:
        raise ValueError(f"this tree routes {', '.join(known)}; say which, at={known[0]!r}")
    if not own:
        what = "routes nothing" if not known else f"routes {', '.join(known)}, not {at!r}{did_you_mean(str(at), known)}"
        raise ValueError(f"this tree {what}; compose(params, BatchSplit(...)) makes one that does")
    axes, count = (1 if isinstance(own[0], BatchSplit) else 2), max(len(block.children) for block in own)
    if not isinstance(ids, jax.core.Tracer):
        ids = np.asarray(ids)
        strange = sorted({int(i) for i in ids.ravel() if not -1 <= i < count})
        if strange:
            raise ValueError(f"{at} has {count} children, 0 to {count - 1}, and -1 for none of them; found {strange}")
    if ids.ndim != axes or any(isinstance(block, Split) != isinstance(own[0], Split) for block in own):
        what = "row, [B]" if axes == 1 else "position, [B, T]"
        raise ValueError(f"{type(own[0]).__name__} takes a number for each {what}; found {list(ids.shape)}")
    ids, made = jnp.asarray(ids, jnp.int32), {}
    for path, value in found.items():
        if any(block.at == at for block in _waiting(value)):
            layers = place(path, jax.tree.leaves(value)[0].shape[0]).layers
            count = None if layers is None else len(layers)
            if count not in made:  # many places share the array
                made[count] = ids if count is None else jnp.broadcast_to(ids, (count, *ids.shape))
            params = put(params, path, dataclasses.replace(value, ids={**value.ids, at: made[count]}))
    return params


def routed_by(params: dict) -> tuple[str, ...]:
    """What `route` is to be called for, `at`, in this tree; () where its rows and positions are all alike."""
    return tuple(sorted({block.at for value in _composed(params).values() for block in _waiting(value)}))


def _composed(params: dict) -> dict[str, Any]:
    return {path: value for path, value in walk(params) if isinstance(value, Composed | ComposedEntry | RowContext)}


def _waiting(value: Any) -> list[BatchSplit | Split]:
    """The blocks of a composed node that are told whose the rows or positions are."""
    return [block for block in blocks(value.plan) if getattr(block, "sizes", ()) is None]


def in_parallel(batch: Any, copies: int) -> Any:
    """A batch for `Parallel` of as many children: every array [B, ...] repeated, [copies B, ...], one copy after another."""
    return jax.tree.map(lambda x: jnp.tile(x, (copies, *(1,) * (x.ndim - 1))), batch)
