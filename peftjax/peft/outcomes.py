"""What adapters beside each other make together: the outcome of a plan, computed.

    Average: Σ w_i y_i        BatchSplit, Split: y_i of each row or position, y0 where it is no one's    Fuse: y0 + attention over y_i - y0

At a kernel y_i are products, and y0 is that with what all stand on, which is computed once. At a site y_i is what entry i makes of the
value y0 that reaches the block.

Every adapter of a block computes for all rows, and a row keeps its own: which one is not known when the program is compiled. What a plan is
run on, `here`, has the adapters by name (`parts`), the `weights` of each Average and the `ids` that `route` gave
(`peftjax.peft.composed`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Kernel, Wrapping, attend, dense, dot, lookup
from peftjax.peft.bottleneck import what_is_read
from peftjax.peft.composition import ROUTES, Average, BatchSplit, Block, Composition, Fuse, Parallel, Split, Stack, names
from peftjax.peft.delta import weight_under


def on(part: Any, base: Any) -> Any:
    """The nodes of one adapter around `base`."""
    return dataclasses.replace(part, base=base if part.base is None else on(part.base, base))


def stand(plan: Composition | None, here: Any, base: Any) -> Any:
    """The kernel that a plan makes of `base`, in the scanned body."""
    if plan is None:
        return base
    if isinstance(plan, str):
        return on(here.parts[plan], base)
    if isinstance(plan, Stack):
        for child in plan.children:
            base = stand(child, here, base)
        return base
    below = _Once(base)
    return _Beside(plan, here, below, tuple(stand(child, here, below) for child in plan.children))


class _Once(Wrapping):
    """A kernel under several others, whose product with one and the same array is computed once. It lives while a layer is traced."""

    def __init__(self, base: Any):
        self.base, self.bare, self.known = base, weight_under(base), []

    def _recall(self, what: str, x, key, compute):
        for same, of, by, found in self.known:
            if same == what and of is x and by is key:
                return found
        found = compute()
        self.known.append((what, x, key, found))
        return found

    def dot(self, x, key=None):
        return self._recall("dot", x, key, lambda: dot(x, self.base, key))

    def lookup(self, ids, dtype, key=None):
        return self._recall("lookup", ids, key, lambda: lookup(ids, self.base, dtype, key))

    def attend(self, x, key=None):
        return self._recall("attend", x, key, lambda: attend(x, self.base, key))

    def merge(self):
        return dense(self.base)


class _Nothing(_Once):
    """The same kernel, of which products are zero: what an adapter adds to it is left."""

    def dot(self, x, key=None):
        return jnp.zeros((*x.shape[:-1], self.shape[-1]), x.dtype)


class _Asked(_Once):
    """The same kernel, which only notes what it is multiplied by, of arrays with these leading axes."""

    def __init__(self, base: Any, lead: tuple[int, ...]):
        super().__init__(base)
        self.lead, self.inputs = lead, []

    def dot(self, x, key=None):
        if x.shape[:-1] != self.lead:
            return dot(x, self.base, key)
        self.inputs.append(x)
        return jnp.zeros((*self.lead, self.shape[-1]), x.dtype)


class _Answered(_Once):
    """The same kernel, of which the product with an array of these leading axes is known."""

    def __init__(self, base: Any, product: jax.Array):
        super().__init__(base)
        self.product = product

    def dot(self, x, key=None):
        return self.product if x.shape[:-1] == self.product.shape[:-1] else dot(x, self.base, key)


class _Beside(Kernel):
    """Kernels around one, whose outcomes a block joins into one."""

    def __init__(self, block: Block, here: Any, below: _Once, children: tuple[Any, ...]):
        self.block, self.here, self.below, self.children, self.bare = block, here, below, children, below.bare

    def dot(self, x, key=None):
        if isinstance(self.block, Fuse):
            return self._fused(x, key)
        if isinstance(self.block, ROUTES):
            return self._routed(x, key)
        return self._joined(lambda kernel: dot(x, kernel, key))

    def _routed(self, x, key):
        """One product with what is below serves all children: that of each row with what the row's own child makes of it."""
        asked = []
        for plan in self.block.children:
            below = _Asked(self.below, x.shape[:-1])
            dot(x, stand(plan, self.here, below), key)  # nothing of this is left in the compiled program but what leads to the inputs
            asked.append(below.inputs or [x])
        if any(len(inputs) > 1 for inputs in asked):  # DoRA with dropout
            return self._joined(lambda kernel: dot(x, kernel, key))
        inputs = [one for one, in asked]
        own = x if all(one is x for one in inputs) else _joined(self.block, self.here, inputs, x)
        product = dot(own, self.below, key)
        each = [dot(x, stand(plan, self.here, _Answered(self.below, product)), key) for plan in self.block.children]
        return _joined(self.block, self.here, each, product)

    def lookup(self, ids, dtype, key=None):
        return self._joined(lambda kernel: lookup(ids, kernel, dtype, key))

    def attend(self, x, key=None):
        if isinstance(self.block, Split):
            raise TypeError("a head tied to an embedding sees some positions only, in an order of their own, which Split cannot tell apart")
        return self._joined(lambda kernel: attend(x, kernel, key))

    def changed_bias(self, bias):
        changed = [kernel.changed_bias(bias) if isinstance(kernel, Kernel) else bias for kernel in (*self.children, self.below)]
        if all(one is bias for one in changed):
            return bias
        if isinstance(self.block, Fuse):
            raise TypeError(f"Fuse weighs what adapters do to a product, and the bias beside it is changed too; {_NO_BIAS}")
        if isinstance(self.block, Parallel):
            raise TypeError(f"Parallel knows its rows by the batch, which a bias does not see; BatchSplit with sizes does; {_NO_BIAS}")
        if isinstance(self.block, Average):
            return _joined(self.block, self.here, changed[:-1], changed[-1])
        rows = jnp.zeros(_rows_of(self.block, self.here), bias.dtype)[..., None]
        changed = [jnp.broadcast_to(one, (*rows.shape[:-1], bias.shape[-1])) for one in changed]
        return _joined(self.block, self.here, changed[:-1], changed[-1])

    def _joined(self, read: Callable[[Any], jax.Array]):
        return _joined(self.block, self.here, [read(child) for child in self.children], read(self.below))

    def _fused(self, x, key):
        unchanged = dot(x, self.below, key)
        changes = []
        for plan, child in zip(self.block.children, self.children, strict=True):
            if isinstance(plan, str) and _adds(self.here.parts[plan]):
                changes.append(dot(x, on(self.here.parts[plan], _Nothing(self.below.base)), key))
            else:
                changes.append(dot(x, child, key) - unchanged)
        return unchanged + self.here.parts[self.block.by].mix(unchanged, changes, key)

    @property
    def shape(self):
        return self.below.shape

    @property
    def dtype(self):
        return self.below.dtype


_NO_BIAS = "leave out the methods that scale a whole output (ia3, oft) on layers with a bias"


def _adds(part: Any) -> bool:
    """Whether all nodes of an adapter add something to a product that does not depend on it."""
    return part is None or (part.adds and _adds(part.base))


def pass_through(plan: Composition | None, here: Any, x, key, context: dict):
    """x through the entries of a plan."""
    if plan is None:
        return x
    if isinstance(plan, str):
        return here.parts[plan](x, key=key, **context)
    if isinstance(plan, Stack):
        for child in plan.children:
            x = pass_through(child, here, x, key, context)
        return x
    outcomes = [pass_through(child, here, x, key, context) for child in plan.children]
    if isinstance(plan, Fuse):
        last = here.parts[[name for name in names(plan) if name in here.parts and name != plan.by][-1]]
        query = what_is_read(getattr(last, "reads", "output"), x, context.get("residual"), context.get("normed"), context.get("after"))
        return x + here.parts[plan.by].mix(query, [y - x for y in outcomes], key)
    return _joined(plan, here, outcomes, x)


def _joined(block: Block, here: Any, outcomes: Sequence[jax.Array], unchanged: jax.Array) -> jax.Array:
    """One outcome of those of a block's children, and of none of them."""
    if isinstance(block, Average):
        weights = here.weights[block.weights]
        return sum(weights[i] * y.astype(jnp.float32) for i, y in enumerate(outcomes)).astype(unchanged.dtype)
    if isinstance(block, ROUTES):
        ids = whose(block, here, unchanged)
        for i, outcome in enumerate(outcomes):
            own = (ids == i).reshape(*ids.shape, *(1,) * (unchanged.ndim - ids.ndim))
            unchanged = jnp.where(jnp.broadcast_to(own, unchanged.shape), outcome, unchanged)
        return unchanged
    raise TypeError(f"{type(block).__name__} has no part in an embedding; it is for linear kernels and sites")


def _rows_of(block: BatchSplit | Split, here: Any) -> tuple[int, int]:
    """(B, T) that the numbers of a block are for, 1 where they do not say."""
    if block.sizes is not None:
        return (sum(block.sizes), 1) if isinstance(block, BatchSplit) else (1, sum(block.sizes))
    ids = _numbers(block, here)
    return ids.shape if ids.ndim == 2 else (*ids.shape, 1)


def _numbers(block: BatchSplit | Split, here: Any) -> jax.Array:
    if block.at not in here.ids:
        raise ValueError(f"{type(block).__name__} does not know which {block.at} are whose; route(params, ids, at={block.at!r}) says it")
    return here.ids[block.at]


def whose(block: Block, here: Any, like: Any) -> jax.Array:
    """Which child each row is for, int [B], or each position, [B, T], of a value of the shape of `like`, [B, ...] or [B, T, ...].

    `here` is what holds the numbers that `route` gave, its `ids`.

    Raises:
        ValueError: no numbers were given, or not those of this batch.
    """
    rows = like.shape[0]
    if isinstance(block, Parallel):
        if rows % len(block.children):
            raise ValueError(f"Parallel has {len(block.children)} children, and the batch {rows} rows; in_parallel makes a copy for each")
        return jnp.arange(rows) // (rows // len(block.children))
    if block.sizes is not None:
        by_row = isinstance(block, BatchSplit)
        ids = jnp.repeat(jnp.arange(len(block.sizes)), jnp.asarray(block.sizes), total_repeat_length=sum(block.sizes))
        length = rows if by_row else like.shape[1] if like.ndim > 2 else 0
        if sum(block.sizes) != length:
            raise ValueError(f"{type(block).__name__} is of {sum(block.sizes)} {'rows' if by_row else 'positions'}, {list(block.sizes)}, "
                             f"and the batch has {length}")
        return ids if by_row else jnp.broadcast_to(ids[None], (rows, length))
    ids = _numbers(block, here)
    if ids.shape != like.shape[: ids.ndim] or ids.ndim >= like.ndim:
        raise ValueError(f"route gave numbers of shape {list(ids.shape)} for {block.at!r}, and the value here is {list(like.shape)}")
    return ids
