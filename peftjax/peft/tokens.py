"""Trained token rows: some rows of the embedding, or of the head, replaced by trained ones (trainable tokens of HF PEFT).

    before  embed/embedding = E [V, D]
    after   embed/embedding = TokenRows(base=E, rows=[N, D], ids=[N])        row ids[n] of E is rows[n]; all others are E's

    E'[ids[n]] = rows[n]

The rows are the new rows themselves, not differences. A head that is tied to the embedding follows.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Tied, Wrapping, attend, dense, lookup, node
from peftjax.nn.tree import put
from peftjax.peft.select import Target, as_patterns, select, with_head


@node(arrays=("base", "rows", "ids"), static=("of_head", "name"))
@dataclasses.dataclass(frozen=True)
class TokenRows(Wrapping):
    """The node. base: embedding [V, D], or head kernel [D, V] with `of_head`; rows: [N, D]; ids: int32 [N], each once."""

    base: Any
    rows: jax.Array
    ids: jax.Array
    of_head: bool
    name: str

    trainable = ("rows",)
    matrices = ("rows",)

    def around(self, x, product, key=None):
        return self._over_columns(product(x), x) if self.of_head else super().around(x, product, key)

    def lookup(self, ids, dtype, key=None):
        hit = ids[..., None] == jnp.broadcast_to(self.ids, (*ids.shape, self.ids.shape[0]))
        row = jnp.take(self.rows, jnp.argmax(hit, axis=-1), axis=0).astype(dtype)
        return jnp.where(jnp.any(hit, axis=-1, keepdims=True), row, lookup(ids, self.base, dtype, key))

    def attend(self, x, key=None):
        return self._over_columns(attend(x, self.base, key), x)

    def merge(self):
        base = dense(self.base)
        rows = self.rows.astype(base.dtype)
        return base.at[:, self.ids].set(rows.T) if self.of_head else base.at[self.ids].set(rows)

    def merged_bias(self):
        below = super().merged_bias()
        return below.at[..., self.ids].set(0) if below is not None and self.of_head else below

    def _over_columns(self, logits, x):
        return logits.at[..., self.ids].set(attend(x, self.rows))


@dataclasses.dataclass(frozen=True)
class trainable_tokens:  # noqa: N801
    """Trains some tokens' rows of the embedding (`targets` "embed_tokens") or of the head ("lm_head"); they start as the base's rows.

    Attributes:
        ids: the tokens, each once.
        targets: "embed_tokens", "lm_head", or both. The target "lm_head" on a base with tied weights is a head of its own.
        name: of the adapter.
    """

    ids: Sequence[int] = ()
    targets: str | Sequence[str] = "embed_tokens"
    name: str = "default"

    def __post_init__(self):
        if not self.ids:
            raise ValueError("trainable_tokens needs at least one token id")
        doubles = sorted({i for i in self.ids if list(self.ids).count(i) > 1})
        if doubles:
            raise ValueError(f"trainable_tokens names ids more than once: {doubles}")

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with trained rows; `key` is not used.

        Raises:
            ValueError: a target that is neither embedding nor head, or an id outside the vocabulary.
        """
        if {"lm_head", "head"} & set(as_patterns(self.targets)):
            params = with_head(params)
        for target in select(params, self.targets):
            params = put(params, target.path, self._node(target))
        return params

    def _node(self, target: Target) -> TokenRows:
        if target.logical not in ("embed/embedding", "head/kernel"):
            raise ValueError(f"trainable_tokens is for embed_tokens and lm_head, not {target.logical}")
        of_head = target.logical == "head/kernel"
        vocabulary = target.value.shape[1 if of_head else 0]
        outside = [i for i in self.ids if not 0 <= i < vocabulary]
        if outside:
            raise ValueError(f"trainable_tokens ids {outside} lie outside the vocabulary of {vocabulary}")
        ids = jnp.asarray(self.ids, jnp.int32)
        if isinstance(target.value, Tied) or not of_head:  # looked up, so that a quantised table is never whole
            table = target.value.base if of_head else target.value
            rows = lookup(ids, table, jnp.float32)
        else:
            rows = dense(target.value)[:, ids].T.astype(jnp.float32)
        return TokenRows(target.value, rows, ids, of_head, self.name)
