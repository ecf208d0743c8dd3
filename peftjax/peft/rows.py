"""Context for some rows of a batch: an entry before a sequence (`peftjax.nn.context`) that other rows do not see.

    before  blocks/attn/kv = {"task": Prefix(...)}              prompt = {"tone": Prompt(...)}
    after   blocks/attn/kv = {"task": RowContext(Prefix(...))}  prompt = {"tone": RowContext(Prompt(...))}

In a row that the composition gives to others the slots are there and are not seen, and positions are those of a row without them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.context import KeysValues
from peftjax.nn.kernels import Entry, node
from peftjax.peft.composition import ROUTES, Composition
from peftjax.peft.outcomes import whose


@node(arrays=("base", "ids"), static=("plan", "name"))
@dataclasses.dataclass(frozen=True)
class RowContext(Entry):
    """The entry. base: the adapter's own; ids: int32 [B] by what `route` calls them, with a leading L outside the scanned body; plan: the
    composition at this place."""

    base: Entry
    ids: dict[str, jax.Array]
    plan: Composition
    name: str

    @property
    def length(self):
        return self.base.length

    @property
    def offset(self):
        return self.base.offset

    @property
    def reads(self):
        return self.base.reads

    def keys_values(self, h, tokens, key=None) -> KeysValues:
        """See `peftjax.nn.context`."""
        own = self.base.keys_values(h, tokens, key)
        return own._replace(seen=self._seen(own.seen, h.shape[0], own.k.shape[-2]))

    def rows(self, batch, dtype, key=None):
        """See `peftjax.nn.context`."""
        x, seen = self.base.rows(batch, dtype, key)
        return x, self._seen(seen, batch, x.shape[-2])

    def shift(self, batch):
        """See `peftjax.nn.context`."""
        moved = self.base.shift(batch)
        if batch is None or isinstance(moved, int) and not moved:
            return moved
        outside = dataclasses.replace(self, ids={at: ids[0] for at, ids in self.ids.items()})  # asked of the tree, where layers have each
        return jnp.where(outside._mine(batch), moved, 0).astype(jnp.int32)

    def _seen(self, seen: jax.Array | None, batch: int, slots: int) -> jax.Array:
        mine = jnp.broadcast_to(self._mine(batch)[:, None], (batch, slots))
        if seen is None:
            return mine
        return seen & (mine if seen.ndim == 2 else jnp.broadcast_to(mine[:, None], seen.shape))

    def _mine(self, batch: int) -> jax.Array:
        """bool [B]: which rows are this adapter's."""
        return jnp.broadcast_to(jnp.asarray(_among(self.plan, self, batch)), (batch,))


def _among(plan: Composition | None, entry: RowContext, batch: int) -> Any:
    """bool, or bool [B]: whether a plan has the entry act."""
    if plan is None or isinstance(plan, str):
        return plan == entry.name
    found: Any = False
    ids = whose(plan, entry, jax.ShapeDtypeStruct((batch, 1), jnp.int32)) if isinstance(plan, ROUTES) else None
    for number, child in enumerate(plan.children):
        below = _among(child, entry, batch)
        found = found | (below if ids is None else below & (ids == number))
    return found
