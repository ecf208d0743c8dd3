"""Context: what a sequence sees beside its own tokens, and the two places of the tree from which a model reads it.

| place | an entry gives | seen by |
|---|---|---|
| blocks/attn/kv | keys and values before those of the sequence, for each layer | all tokens of all segments, whatever the window |
| prompt | embeddings before the line: virtual tokens | all tokens behind them, whatever their segment, as if they began it |

    params/blocks/attn/kv = {"task": Prefix(k=[L, P, GK], v=[L, P, GK], ...)}
    params/prompt         = {"tone": Prompt(embedding=[P, D], ...)}

In an encoder virtual tokens see the text behind them: there each segment has a copy, which its own tokens see.

Where nothing is attached nothing is computed. Entries of one place stand behind each other in the order of their names. An entry
is a `peftjax.nn.kernels.Entry`; one that gives some rows of a batch something else than others has a leading B where that is said.

An entry at `blocks/attn/kv` has

    keys_values(h, tokens, key) -> KeysValues      in the scanned body; h [B, T, D] is what the attention layer reads, `tokens` are as
                                                   at sites, `key` is for dropout or None
    shift(batch) -> int or int32 [B]               positions of tokens begin there instead of at 0; asked of the entry as it lies in the
                                                   tree, with the layer axis in its leaves; the most of any row for a batch of None

and one at `prompt`

    length                                         P, how many slots it takes
    rows(batch, dtype, key) -> (x, seen)           embeddings [P, D] or [B, P, D], in units of the base's embedding, and which of them
                                                   there are: bool [B, P], or None for all
    offset, reads                                  of encoders: whether they join before the embedding's norm and take positions; and
                                                   "prompt" where the classifier reads the first of them instead of the text's own token

A virtual token that a row has not takes a slot, and nothing else: it is not seen, and no position is counted for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

KEYS_VALUES, PROMPT = "kv", "prompt"


class KeysValues(NamedTuple):
    """Keys and values before a sequence, not rotated.

    k, v: [P, G K] or [B, P, G K], or [..., G, K] once a layer has split them into heads; seen: bool [B, P] or [B, T, P], or None for all;
    key_gate, value_gate: [B, T, P], by which a token multiplies the scores of the keys and what it takes from the values, or None; places:
    int [P], negative, how far before the first token they count as standing where a layer has a window, or None to be seen by all.
    """

    k: jax.Array
    v: jax.Array
    seen: jax.Array | None = None
    key_gate: jax.Array | None = None
    value_gate: jax.Array | None = None
    places: jax.Array | None = None

    def within(self, positions, window: Any) -> "KeysValues":
        """As tokens at `positions` int [B, T] see them through a window, which is None where there is none."""
        if self.places is None or window is None:
            return self._replace(places=None)
        near = positions[:, :, None] - self.places[None, None] < window
        seen = self.seen if self.seen is None or self.seen.ndim == 3 else self.seen[:, None]
        return self._replace(seen=near if seen is None else near & seen, places=None)

    def heads(self, groups: int) -> "KeysValues":
        """With `groups` heads of keys and of values."""
        return self._replace(**{name: x.reshape(*x.shape[:-1], groups, -1) for name, x in (("k", self.k), ("v", self.v))})


def keys_values(module: nn.Module, h, tokens, groups: int, size: int, positions, window: Any = None) -> KeysValues | None:
    """What stands before the sequence in an attention layer; None where nothing does.

    Args:
        h, tokens: as the entries get them.
        groups, size: the layer's key/value heads, and the size of one.
        positions, window: int [B, T] of what is in h, and the layer's window, or None.

    Raises:
        ValueError: an entry whose keys are made for other heads.
    """
    if not module.has_variable("params", KEYS_VALUES):
        return None
    entries = module.get_variable("params", KEYS_VALUES)
    key = module.make_rng("dropout") if module.has_rng("dropout") else None  # each entry folds its own name in
    parts = []
    for name in sorted(entries):
        part = entries[name].keys_values(h, tokens, key)
        if part.k.shape != part.v.shape or part.k.shape[-1] != groups * size:
            raise ValueError(
                f"{type(entries[name]).__name__} {name!r} has keys {part.k.shape} and values {part.v.shape}; this base has {groups} "
                f"key/value heads of {size}, {groups * size} numbers a slot"
            )
        parts.append(part.within(positions, window)._replace(k=part.k.astype(h.dtype), v=part.v.astype(h.dtype)))
    return _behind_each_other(parts, *h.shape[:2]).heads(groups)


def _behind_each_other(parts: Sequence[KeysValues], batch: int, length: int) -> KeysValues:
    if len(parts) == 1:
        return parts[0]
    by_row = any(part.k.ndim == 3 for part in parts)
    by_token = any(part.seen is not None and part.seen.ndim == 3 for part in parts)

    def kept(x):
        return x if x.ndim == 3 or not by_row else jnp.broadcast_to(x, (batch, *x.shape))

    def seen(part):
        shape = (batch, length, part.k.shape[-2]) if by_token else (batch, part.k.shape[-2])
        if part.seen is None:
            return jnp.ones(shape, bool)
        return jnp.broadcast_to(part.seen[:, None] if by_token and part.seen.ndim == 2 else part.seen, shape)

    def gate(part, name):
        value = getattr(part, name)
        return jnp.ones((batch, length, part.k.shape[-2]), part.k.dtype) if value is None else value

    gates = {
        name: jnp.concatenate([gate(part, name) for part in parts], axis=-1)
        for name in ("key_gate", "value_gate") if any(getattr(part, name) is not None for part in parts)
    }
    return KeysValues(
        jnp.concatenate([kept(part.k) for part in parts], axis=-2), jnp.concatenate([kept(part.v) for part in parts], axis=-2),
        None if all(part.seen is None for part in parts) else jnp.concatenate([seen(part) for part in parts], axis=-1), **gates,
    )


def shift(params: Mapping[str, Any], batch: int | None) -> int | jax.Array:
    """Where the positions of tokens begin: the sum over the entries of a stack, or the most of several stacks; int, or int32 [B]."""
    most: int | jax.Array = 0
    for stack, layers in params.items():
        entries = layers.get("attn", {}).get(KEYS_VALUES, {}) if stack.startswith("blocks") else {}
        if entries:
            total = sum(entry.shift(batch) for entry in entries.values())
            most = max(most, total) if isinstance(most, int) and isinstance(total, int) else jnp.maximum(most, total)
    return most


def virtual_tokens(entries: Mapping[str, Any] | None) -> int:
    """How many slots the entries of `prompt` take before a line."""
    return sum(entry.length for entry in (entries or {}).values())


def embeddings(entries: Mapping[str, Any], batch: int, dtype: Any, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The virtual tokens before each row: embeddings [B, P, D], and which of them there are, bool [B, P]."""
    rows, there = [], []
    for name in sorted(entries):
        x, seen = entries[name].rows(batch, dtype, key)
        rows.append(jnp.broadcast_to(x.astype(dtype), (batch, *x.shape[-2:])))
        there.append(jnp.ones((batch, x.shape[-2]), bool) if seen is None else seen)
    return jnp.concatenate(rows, axis=1), jnp.concatenate(there, axis=1)


def joining(entries: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Of the virtual tokens of an encoder: which of them take positions, bool [P], and the slots that a classifier may read, the first of
    those that a row has."""
    offset, read, start = [], [], 0
    for name in sorted(entries):
        entry = entries[name]
        offset += [entry.offset] * entry.length
        read += [start] if entry.reads == "prompt" else []
        start += entry.length
    return np.array(offset), tuple(read)


def places_ahead(params: Mapping[str, Any]) -> int:
    """The most positions that context takes before the first token of a row: what a table of learned positions must hold beside it."""
    moved = shift(params, None)
    return virtual_tokens(params.get(PROMPT)) + (moved if isinstance(moved, int) else int(jnp.max(moved)))
