"""Sight: who sees whom within whole sequences, as a few numbers a token instead of a mask [B, T, T].

    tokens     a a a b b 0        a query in slot q sees the key in slot k iff k <= q, both are of one segment, and q - k < window
    segments   1 1 1 2 2 0        0 is padding, which sees nothing and is not seen

With shared prefixes a line is a tree of runs in depth-first order, and `until` says for each slot where its subtree ends:

    tokens     p p p b b c c 0    p is a prefix of both b and c
    until      7 7 7 5 5 7 7 0    slot k is seen by slots k <= q < until[k]
    positions  0 1 2 3 4 3 4 0    a window compares positions, as slots of cousins lie between

Encoders see both ways (`causal` False): all of a segment.

The first `first` slots of a line may be virtual tokens (`peftjax.nn.context`), which every token behind them sees, whatever its segment.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Sight:
    """Who sees whom. segments, positions: [B, T] int; until: [B, T] int or None; window: int, int scalar array, or None for all; first:
    how many slots hold virtual tokens."""

    segments: jax.Array
    positions: jax.Array
    until: jax.Array | None = None
    window: jax.Array | int | None = None
    causal: bool = struct.field(pytree_node=False, default=True)
    first: int = struct.field(pytree_node=False, default=0)

    def mask(self, start: int, stop: int, keys: int) -> jax.Array:
        """bool [B, stop - start, keys]: which of the first `keys` slots the queries in slots `start` to `stop` - 1 see."""
        slots, earlier = jnp.arange(start, stop), jnp.arange(keys)
        seen = self.segments[:, None, :keys] > 0
        if self.until is None:
            same = self.segments[:, start:stop, None] == self.segments[:, None, :keys]
            seen = seen & (same | (earlier < self.first)[None, None] if self.first else same)
        else:
            seen = seen & (slots[None, :, None] < self.until[:, None, :keys])
        if self.causal:
            seen = seen & (slots[:, None] >= earlier[None, :])[None]
        if self.window is not None:
            seen = seen & (self.positions[:, start:stop, None] - self.positions[:, None, :keys] < self.window)
        return seen
