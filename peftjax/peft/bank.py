"""Different adapters in one batch: adapters of one base side by side, and a number for each row that says which of them is its own.

    bank = stack_adapters(base, [first, second, third])                   see `peftjax.peft.stacking`
    logits = model.apply({"params": choose(bank, [2, 0, -1])}, tokens)    row 0 by the third, row 1 by the first, row 2 by the base alone
    generate_ids(model, bank, prompts, eos_id, max_new=64, for_rows=lambda bank, rows: choose(bank, numbers[rows]))

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = LoRABank(base=W, a=[L, K, R, in], b=[L, K, R, out], scale=[L, K, R], ids=[L, B])
            blocks/mlp_out = {"bank00": BottleneckBank(down=[L, K, M, D], ..., ids=[L, B])}

K counts the adapters that have something at that place, `members` says which these are. Ranks and sizes that differ are padded by rows of
zeros. Numbers are leaves: other numbers are no other program. Row by row the result is that of the adapter alone, in one of two forms:

| form   | product with A                                       | reads at each place              | computes |
|---|---|---|---|
| picked | x_b A_{id(b)}ᵀ, one small product for each row       | the adapter of each row, copied (`gather`: once a batch) | once |
| pooled | x [A_1; ...; A_K]ᵀ, of which a row keeps its own part | each adapter                     | K times  |

Pooled is for few tokens of many rows that share few adapters. With eight adapters of rank 16 for eight rows picked products take 0.6 of
the time (SmolLM2-135M's 576 x 576 kernels, two cores: 46 us a pair of products against 81 us).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.nn.kernels import Entry, Wrapping, attend, lookup, node
from peftjax.nn.layers import ACTIVATIONS, layer_norm
from peftjax.nn.thin import expand, shrink
from peftjax.nn.tree import place, put, walk
from peftjax.peft.attach import adapters
from peftjax.peft.bottleneck import what_is_read

POOLED_TOKENS = 16  # tokens a row up to which the pooled form is used,
SHARED_BY = 4  # where there are so many rows to an adapter


class Rows(NamedTuple):
    """Which member each row of a batch is for: `ids` int32 [B], -1 for none, and in which form that is computed; `gathered` where values
    are those of the rows already."""

    ids: jax.Array
    members: int
    pooled: bool
    gathered: bool = False

    def picked(self, values):
        """Values [K, ...] of each row's own member, [B, ...]; those of a row without one mean nothing."""
        return values if self.gathered else values[jnp.maximum(self.ids, 0)]

    def own(self, values, axes: int):
        """Values [K, ...] of each row's own member, [B, 1, ..., 1, ...] with `axes` axes; those of a row without one mean nothing."""
        picked = self.picked(values)
        return picked.reshape(picked.shape[0], *(1,) * (axes - picked.ndim), *picked.shape[1:])

    def thin(self, x, rows):
        """x [B, T, in] times rows [K, R, in] -> [B, T, K R] pooled, of which most is other rows' (`only_own`), or [B, T, R] picked."""
        if self.pooled:
            return shrink(x, rows.reshape(-1, rows.shape[-1]))
        return jnp.einsum("BTI,BRI->BTR", x, self.picked(rows).astype(x.dtype))

    def beside(self, values, like):
        """Values [K, R] in the shape and dtype of what `thin` gives."""
        values = values.reshape(1, 1, -1) if self.pooled else self.own(values, 3)
        return jnp.broadcast_to(values.astype(like.dtype), like.shape)

    def only_own(self, z):
        """z, as `thin` gives it, with zero in the place of other members' products."""
        if self.pooled:
            mine = self.ids[:, None] == jnp.arange(self.members)[None]
            mine = jnp.repeat(mine, z.shape[-1] // self.members, axis=1)[:, None]
        else:
            mine = (self.ids >= 0)[:, None, None]
        return jnp.where(jnp.broadcast_to(mine, z.shape), z, 0)

    def wide(self, z, rows):
        """z, as `only_own` gives it, times rows [K, R, out] -> [B, T, out]."""
        if self.pooled:
            return expand(z, rows.reshape(-1, rows.shape[-1]))
        return jnp.einsum("BTR,BRO->BTO", z, self.picked(rows).astype(z.dtype))


def rows_of(ids: jax.Array | None, members: int, x: jax.Array, gathered: bool = False) -> Rows:
    """How the rows of x [B, ...] are computed.

    Raises:
        ValueError: no numbers were given, or not one for each row.
    """
    if ids is None:
        raise ValueError("no row has an adapter yet; choose(params, ids) says which, with a number for each row of the batch")
    if ids.shape[0] != x.shape[0]:
        raise ValueError(f"adapters were chosen for {ids.shape[0]} rows, and the batch has {x.shape[0]}")
    tokens = x.size // (x.shape[0] * x.shape[-1])
    pooled = not gathered and tokens <= POOLED_TOKENS and x.shape[0] >= SHARED_BY * members
    return Rows(ids, members, pooled, gathered)


@node(arrays=("base", "a", "b", "scale", "bias", "ids"), static=("members", "of", "name", "gathered"))
@dataclasses.dataclass(frozen=True)
class LoRABank(Wrapping):
    """The node. base: kernel [in, out]; a: [K, R, in]; b: [K, R, out]; scale: [K, R]; bias: [K, out], scaled, or None; ids: int32 [B], each
    row's place among the members, or None before `choose`; members: numbers of the K adapters that are here, of `of` in all. Leaves have a
    leading L outside the scanned body. On an embedding [V, D] `in` is V and `out` is D."""

    base: Any
    a: jax.Array
    b: jax.Array
    scale: jax.Array
    bias: jax.Array | None
    ids: jax.Array | None
    members: tuple[int, ...]
    of: int
    name: str
    gathered: bool = False

    def around(self, x, product, key=None):
        return product(x) + self._change(x, self.a, self.b, self.bias)

    def attend(self, x, key=None):
        return attend(x, self.base, key) + self._change(x, self.b, self.a, None)

    def lookup(self, ids, dtype, key=None):
        rows = rows_of(self.ids, len(self.members), ids[..., None], self.gathered)._replace(pooled=False)
        z = self.a[jnp.maximum(self.ids, 0)[:, None], :, ids].astype(dtype)
        return lookup(ids, self.base, dtype, key) + rows.wide(rows.only_own(z * rows.beside(self.scale, z)), self.b)

    def merge(self):
        raise TypeError("a bank of adapters has no one dense weight; merge the tree of one adapter")

    def _change(self, x, a, b, bias):
        rows = rows_of(self.ids, len(self.members), x, self.gathered)
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        z = rows.thin(flat, a)
        change = rows.wide(rows.only_own(z * rows.beside(self.scale, z)), b)
        if bias is not None:
            own = jnp.where((self.ids >= 0)[:, None, None], rows.own(bias, 3), 0).astype(x.dtype)
            change = change + jnp.broadcast_to(own, change.shape)
        return change.reshape(*x.shape[:-1], change.shape[-1])


@node(
    arrays=("down", "down_bias", "up", "up_bias", "scale", "norm_before", "norm_before_bias", "norm_after", "norm_after_bias", "ids"),
    static=("activation", "reads", "members", "of", "name", "gathered"),
)
@dataclasses.dataclass(frozen=True)
class BottleneckBank(Entry):
    """The entry: bottlenecks of one form (activation, what they read, which norms), as in `Bottleneck` but with a leading K; scale: [K, D].
    The rest as in `LoRABank`."""

    down: jax.Array
    down_bias: jax.Array
    up: jax.Array
    up_bias: jax.Array
    scale: jax.Array
    norm_before: jax.Array | None
    norm_before_bias: jax.Array | None
    norm_after: jax.Array | None
    norm_after_bias: jax.Array | None
    ids: jax.Array | None
    activation: str
    reads: str
    members: tuple[int, ...]
    of: int
    name: str
    gathered: bool = False

    def __call__(self, x, key=None, residual=None, normed=None, after=None, **_):
        """x [B, T, D], the output at the site, -> x + f(what each row's own adapter reads)."""
        rows = rows_of(self.ids, len(self.members), x, self.gathered)

        def own(values):
            return jnp.broadcast_to(rows.own(values, 3).astype(x.dtype), x.shape)

        def norm(h, scale, bias):
            return h if scale is None else layer_norm(h, rows.own(scale, 3), rows.own(bias, 3), 1e-5)

        h = norm(what_is_read(self.reads, x, residual, normed, after), self.norm_before, self.norm_before_bias)
        z = rows.thin(h, self.down)
        z = rows.only_own(ACTIVATIONS[self.activation](z + rows.beside(self.down_bias, z)))
        h = norm((rows.wide(z, self.up) + own(self.up_bias)) * own(self.scale), self.norm_after, self.norm_after_bias)
        return jnp.where(jnp.broadcast_to((self.ids >= 0)[:, None, None], x.shape), x + h, x)


def choose(params: dict, ids: Sequence[int] | np.ndarray | jax.Array, gather: bool = False) -> dict:
    """A new tree of a bank for a batch whose row b has adapter ids[b], -1 for none.

    Args:
        params: from `stack_adapters`.
        ids: int [B]; may be traced.
        gather: copy each row's adapter out of the bank now, B of them, and not anew in each step: for decoding.

    Raises:
        ValueError: no bank, or a number that no adapter has.
    """
    banks = {path: value for path, value in walk(params) if isinstance(value, LoRABank | BottleneckBank)}
    if not banks:
        raise ValueError(f"no bank is in this tree, whose adapters are {', '.join(adapters(params)) or 'none'}; stack_adapters makes one")
    of = next(iter(banks.values())).of
    if not isinstance(ids, jax.core.Tracer):
        ids = np.asarray(ids)
        strange = sorted({int(i) for i in ids if not -1 <= i < of})
        if strange:
            raise ValueError(f"no adapter has the numbers {strange}; the bank has 0 to {of - 1}, and -1 is the base alone")
    made: dict[Any, jax.Array] = {}  # many places have the same members, and share the array
    for path, value in banks.items():
        leaf = value.a if isinstance(value, LoRABank) else value.down
        layers = place(path, leaf.shape[0]).layers
        key = (value.members, None if layers is None else len(layers))
        if key not in made:
            position = np.full(of + 1, -1, np.int32)  # the last one is that of -1
            position[list(value.members)] = np.arange(len(value.members))
            local = jnp.asarray(position)[ids]
            made[key] = local if layers is None else jnp.broadcast_to(local, (len(layers), *local.shape))
        chosen = dataclasses.replace(value, ids=made[key])
        params = put(params, path, _gathered(chosen, layers is not None) if gather else chosen)
    return params


def _gathered(bank: Any, stacked: bool) -> Any:
    """The bank with the values of each row's own member in the place of all members', [L, B, ...] for [L, K, ...]."""
    local = bank.ids[0] if stacked else bank.ids
    own = {
        field: jnp.take(getattr(bank, field), jnp.maximum(local, 0), axis=int(stacked))
        for field in bank.array_fields if field not in ("base", "ids") and getattr(bank, field) is not None
    }
    rows = jnp.where(local >= 0, jnp.arange(local.shape[0]), -1)
    return dataclasses.replace(bank, **own, ids=jnp.broadcast_to(rows, bank.ids.shape), gathered=True)
