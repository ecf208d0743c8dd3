"""Virtual tokens of an encoder: they and the text behind them see each other, so that each text of a line has a copy, before the line.

    slots      v v v v  a a a b b 0      P = 2 virtual tokens, N = 2 texts: P N + T slots in the trunk, of which T are given back
    segments   1 1 2 2  1 1 1 2 2 0
    places     0 1 0 1  2 3 4 2 3 0      in the table of positions; what joins behind the norm has none there, and moves none

Where a classifier reads a virtual token, its hidden state stands in the place of that of the first token of its text. Within a segment
order is nothing but positions, so that it makes no difference before which token the virtual ones stand.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from peftjax.nn.context import embeddings, joining


@struct.dataclass
class Front:
    """What stands before B lines of N texts: P slots a text.

    x: [B, P, D]; there: bool [B, P], which of them a row has; offset: bool [P], which of them join before the norm and take positions;
    read: the slots that a classifier may read, the first that a row has; texts: N.
    """

    x: jax.Array
    there: jax.Array
    offset: np.ndarray = struct.field(pytree_node=False)
    read: tuple[int, ...] = struct.field(pytree_node=False)
    texts: int = struct.field(pytree_node=False)

    @classmethod
    def of(cls, entries: Mapping[str, Any], batch: int, texts: int, dtype: Any, key: jax.Array | None) -> "Front":
        """Of the entries that a tree holds; `key` is for dropout or None."""
        return cls(*embeddings(entries, batch, dtype, key), *joining(entries), texts)

    def tokens(self, rest: jax.Array, segments: jax.Array) -> jax.Array:
        """[B, N P + T, D], before the embeddings `rest` [B, T, D] of a line, in which a token of a segment above N is not a number."""
        known = (segments <= self.texts)[..., None]
        return jnp.concatenate([jnp.tile(self.x, (1, self.texts, 1)).astype(rest.dtype), jnp.where(known, rest, jnp.nan)], axis=1)

    def segments(self, rest: jax.Array) -> jax.Array:
        """int [B, N P + T], before the segments of a line."""
        numbers = jnp.arange(1, self.texts + 1, dtype=rest.dtype)
        own = self.there[:, None] * numbers[None, :, None]
        return jnp.concatenate([own.reshape(len(rest), -1), rest], axis=1)

    def places(self, rest: jax.Array) -> jax.Array:
        """int [B, N P + T], before the positions of a line, which begin behind what takes any."""
        counted = (self.there & jnp.asarray(self.offset)[None]).astype(rest.dtype)
        own = jnp.tile(jnp.cumsum(counted, axis=1) - counted, (1, self.texts))
        return jnp.concatenate([own, rest + jnp.sum(counted, axis=1, keepdims=True)], axis=1)

    def blank(self, rest: jax.Array) -> jax.Array:
        """int [B, N P + T], zeros before numbers of a line."""
        return jnp.pad(rest, ((0, 0), (self.texts * self.x.shape[1], 0)))

    def joined(self, x: jax.Array, embedded: jax.Array) -> jax.Array:
        """The stream behind the norm, `embedded` [B, N P + T, D], with those slots of x in it that do not pass the norm."""
        if self.offset.all():
            return embedded
        bare = np.concatenate([np.tile(~self.offset, self.texts), np.zeros(x.shape[1] - self.texts * len(self.offset), bool)])
        return jnp.where(jnp.asarray(bare)[None, :, None], x, embedded)

    def behind(self, x: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        """Of hidden states [B, N P + T, D] those of the line [B, T, D], whose positions and segments are [B, T]."""
        slots = self.texts * self.x.shape[1]
        front, own = x[:, :slots], x[:, slots:]
        if not self.read:
            return own
        can = self.there[:, np.array(self.read)]
        at = jnp.asarray(self.read)[jnp.argmax(can, axis=1)]
        copies = front.reshape(len(x), self.texts, -1, x.shape[-1])
        read = jnp.take_along_axis(copies, at[:, None, None, None], axis=2)[:, :, 0]
        read = jnp.take_along_axis(read, jnp.clip(segments - 1, 0, self.texts - 1)[..., None], axis=1)
        begins = (positions == 0) & (segments > 0) & jnp.any(can, axis=1, keepdims=True)
        return jnp.where(begins[..., None], read, own)
