"""What a composition is in a tree: one node around a kernel, or one entry at a site, that holds the adapters by name and a plan.

    before  blocks/attn/q/kernel = LoRA("b", base=LoRA("a", base=W))
            blocks/mlp_out       = {"a": Bottleneck, "b": Bottleneck}
    after   blocks/attn/q/kernel = Composed(base=W, parts={"a": LoRA(base=None), "b": LoRA(base=None)}, plan=Average("a", "b"), weights=...)
            blocks/mlp_out       = ComposedEntry(parts={"a": Bottleneck, "b": Bottleneck}, plan=Average("a", "b"), weights=...)

An adapter is held once however often the plan names it, and its leaves keep their paths: `blocks/attn/q/kernel/a/b`,
`blocks/mlp_out/a/down`. What adapters beside each other stand on, W or a Stack below them, is computed once. Numbers (weights of an
Average, which row is whose) are leaves: others are no other program.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey

from peftjax.nn.kernels import Entry, Kernel, Wrapping, attend, dense, dot, lookup, node
from peftjax.peft.bottleneck import what_is_read
from peftjax.peft.composition import ROUTES, Average, BatchSplit, Block, Composition, Fuse, Parallel, Split, Stack, blocks, names
from peftjax.peft.delta import weight_under


def _register(cls, heads: tuple[str, ...], key_of: Callable[[str], str]):
    """Registers a class with fields `heads`, parts, weights, ids and the static plan; `key_of` is what a part's name adds to its paths."""

    def plain(value):
        parts = tuple(value.parts.values())
        return (*(getattr(value, f) for f in heads), *parts, value.weights, value.ids), (tuple(value.parts), value.plan)

    def keyed(value):
        children, aux = plain(value)
        keys = [*("" for _ in heads), *map(key_of, value.parts), "weights", "ids"]
        return [(GetAttrKey(key), child) for key, child in zip(keys, children, strict=True)], aux

    def build(aux, children):
        (names, plan), count = aux, len(heads)
        parts = dict(zip(names, children[count:-2], strict=True))
        return cls(*children[:count], parts, children[-2], children[-1], plan)

    jax.tree_util.register_pytree_with_keys(cls, keyed, build, plain)
    cls.array_fields = (*heads, "parts", "weights", "ids")
    return cls


@dataclasses.dataclass(frozen=True)
class Composed(Wrapping):
    """The node. base: what all stands on, None where nothing does; parts: the nodes of each adapter, whose innermost base is None; weights:
    float32 [N] of each Average, by number; ids: int32 [B] or [B, T] by what `route` calls them. Leaves have a leading L outside the scanned
    body."""

    base: Any
    parts: dict[str, Kernel]
    weights: dict[str, jax.Array]
    ids: dict[str, jax.Array]
    plan: Composition

    def dot(self, x, key=None):
        return dot(x, _stand(self.plan, self, self.base), key)

    def lookup(self, ids, dtype, key=None):
        return lookup(ids, _stand(self.plan, self, self.base), dtype, key)

    def attend(self, x, key=None):
        return attend(x, _stand(self.plan, self, self.base), key)

    def merge(self):
        bare = None if self.base is None else dense(self.base).astype(jnp.float32)
        return _fold(self.plan, self, _Folded(bare, None, None, bare)).base.astype(self.dtype)

    def merged_bias(self):
        return None if self.base is None else _fold(self.plan, self, self._bottom(None), biases=True).own

    def changed_bias(self, bias):
        if len(self.shape) == 2:
            return _stand(self.plan, self, self.base).changed_bias(bias)
        return _fold(self.plan, self, self._bottom(bias), biases=True).beside

    @property
    def shape(self):
        return self._first().shape

    @property
    def dtype(self):
        return self._first().dtype

    def _first(self):
        return next(iter(self.parts.values())) if self.base is None else self.base

    def _bottom(self, bias):
        below = self.base if isinstance(self.base, Kernel) else None
        own = None if below is None else below.merged_bias()
        bias = bias if below is None or bias is None else below.changed_bias(bias)
        return _Folded(jnp.zeros(self.shape), own, bias, None)


@dataclasses.dataclass(frozen=True)
class ComposedEntry(Entry):
    """The entry, in the place of a site's entries by name. parts: these; the rest as in `Composed`."""

    parts: dict[str, Entry]
    weights: dict[str, jax.Array]
    ids: dict[str, jax.Array]
    plan: Composition

    def __call__(self, x, key=None, **context):
        """x [B, T, D] -> the same, as the entries make it together."""
        return _pass(self.plan, self, x, key, context)


_register(Composed, ("base",), lambda name: "")  # a kernel's node prefixes its own name
_register(ComposedEntry, (), lambda name: name)


def stacked(plan: Composition | None) -> tuple[str, ...] | None:
    """The adapters of a plan in which they act one after another, in that order; None where adapters stand beside each other."""
    if plan is None or isinstance(plan, str):
        return () if plan is None else (plan,)
    below = [stacked(child) for child in plan.children] if isinstance(plan, Stack) else [None]
    return None if None in below else sum(below, ())


def placed(plan: Composition, base: Any, parts: dict[str, Kernel], weights: dict[str, jax.Array], ids: dict[str, jax.Array]) -> Any:
    """What a plan is around a kernel: nested nodes where they act one after another, else `Composed`."""
    order = stacked(plan)
    if order is None:
        return Composed(base, parts, weights, ids, plan)
    for name in order:
        base = on(parts[name], base)
    return base


def hung(plan: Composition, entries: dict[str, Entry], weights: dict[str, jax.Array], ids: dict[str, jax.Array]) -> Any:
    """What a plan is at a site: entries by name where they act in the order of their names, else `ComposedEntry`."""
    return entries if stacked(plan) == tuple(sorted(entries)) else ComposedEntry(entries, weights, ids, plan)


def without(value: Composed | ComposedEntry, gone: set[str]) -> Any:
    """What is left of it when adapters are taken off; None where nothing is.

    Raises:
        ValueError: of adapters beside each other some would go and some stay.
    """
    plan = _left(value.plan, gone)
    parts = {name: part for name, part in value.parts.items() if name not in gone}
    kept = {block.weights for block in blocks(plan) if isinstance(block, Average)}
    weights = {number: leaf for number, leaf in value.weights.items() if number in kept}
    if isinstance(value, ComposedEntry):
        return None if plan is None else hung(plan, parts, weights, value.ids)
    return value.base if plan is None else placed(plan, value.base, parts, weights, value.ids)


def _left(plan: Composition | None, gone: set[str]) -> Composition | None:
    if plan is None or isinstance(plan, str):
        return None if plan in gone else plan
    if isinstance(plan, Stack):
        children = [child for child in (_left(child, gone) for child in plan.children) if child is not None]
        return plan.over(*children) if len(children) > 1 else next(iter(children), None)
    hit = gone & set(names(plan))
    if hit and hit != set(names(plan)):
        stay = ", ".join(sorted(set(names(plan)) - hit))
        raise ValueError(f"{', '.join(sorted(hit))} cannot leave this {type(plan).__name__}, in which {stay} would stay: "
                         "decompose(params), take it off there, and compose what is left")
    return None if hit else plan


def on(part: Any, base: Any) -> Any:
    """The nodes of one adapter around `base`."""
    return dataclasses.replace(part, base=base if part.base is None else on(part.base, base))


def _stand(plan: Composition | None, here: Composed, base: Any) -> Any:
    """The kernel that a plan makes of `base`, in the scanned body."""
    if plan is None:
        return base
    if isinstance(plan, str):
        return on(here.parts[plan], base)
    if isinstance(plan, Stack):
        for child in plan.children:
            base = _stand(child, here, base)
        return base
    below = _Once(base)
    return _Beside(plan, here, below, tuple(_stand(child, here, below) for child in plan.children))


class _Once(Kernel):
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

    def merged_bias(self):
        return self.base.merged_bias() if isinstance(self.base, Kernel) else None

    def changed_bias(self, bias):
        return self.base.changed_bias(bias) if isinstance(self.base, Kernel) else bias

    @property
    def shape(self):
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype


class _Nothing(_Once):
    """The same kernel, of which products are zero: what an adapter adds to it is left."""

    def dot(self, x, key=None):
        return jnp.zeros((*x.shape[:-1], self.shape[-1]), x.dtype)


class _Beside(Kernel):
    """Kernels around one, whose outcomes a block joins into one."""

    def __init__(self, block: Block, here: Composed, below: _Once, children: tuple[Any, ...]):
        self.block, self.here, self.below, self.children, self.bare = block, here, below, children, below.bare

    def dot(self, x, key=None):
        if isinstance(self.block, Fuse):
            return self._fused(x, key)
        return self._joined(lambda kernel: dot(x, kernel, key))

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


def _pass(plan: Composition | None, here: ComposedEntry, x, key, context: dict):
    """x through the entries of a plan."""
    if plan is None:
        return x
    if isinstance(plan, str):
        return here.parts[plan](x, key=key, **context)
    if isinstance(plan, Stack):
        for child in plan.children:
            x = _pass(child, here, x, key, context)
        return x
    outcomes = [_pass(child, here, x, key, context) for child in plan.children]
    if isinstance(plan, Fuse):
        last = here.parts[[name for name in names(plan) if name in here.parts and name != plan.by][-1]]
        query = what_is_read(getattr(last, "reads", "output"), x, context.get("residual"), context.get("normed"), context.get("after"))
        return x + here.parts[plan.by].mix(query, [y - x for y in outcomes], key)
    return _joined(plan, here, outcomes, x)


def _joined(block: Block, here: Composed | ComposedEntry, outcomes: Sequence[jax.Array], unchanged: jax.Array) -> jax.Array:
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


def _rows_of(block: BatchSplit | Split, here: Composed | ComposedEntry) -> tuple[int, int]:
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


@node(arrays=("base", "own", "beside", "bare"))
@dataclasses.dataclass(frozen=True)
class _Folded(Kernel):
    """A dense weight that adapters were merged into, float32 (None: nothing yet), with the bias that they add, what they made of the bias
    beside it, and the weight as it was before. It is the base of what is merged next."""

    base: Any
    own: jax.Array | None
    beside: jax.Array | None
    bare: Any

    def dot(self, x, key=None):
        return dot(x, self.base, key)

    def merge(self):
        return self.base

    def merged_bias(self):
        return self.own

    def changed_bias(self, bias):
        return bias if self.beside is None else self.beside

    @property
    def shape(self):
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype


def _fold(plan: Composition | None, here: Composed, below: _Folded, biases: bool = False) -> _Folded:
    """What a plan makes of a weight, merged; only of biases, where these are asked for."""
    if plan is None:
        return below
    if isinstance(plan, str):
        part = on(here.parts[plan], None if below.base is None else below)
        weight = below.base if biases else part.merge()
        beside = None if below.beside is None else part.changed_bias(below.beside)
        return _Folded(weight, part.merged_bias() if below.base is not None else None, beside, below.bare)
    if isinstance(plan, Stack):
        for child in plan.children:
            below = _fold(child, here, below, biases)
        return below
    if not isinstance(plan, Average):
        raise TypeError(f"{type(plan).__name__} of {', '.join(here.parts)} is no one weight: {_NO_WEIGHT[isinstance(plan, Fuse)]}")
    weights = here.weights[plan.weights]
    each = [_fold(child, here, below, biases) for child in plan.children]

    def mean(values):
        there = [(weights[..., i], value) for i, value in enumerate(values) if value is not None]
        scaled = [value * weight.reshape(*weight.shape, *(1,) * (value.ndim - weight.ndim)) for weight, value in there]
        return sum(scaled[1:], start=scaled[0]) if scaled else None

    weight = below.base if biases else mean([one.base for one in each])
    return _Folded(weight, mean([one.own for one in each]), mean([one.beside for one in each]), below.bare)


_NO_WEIGHT = (
    "it depends on the row or the position; merge the tree of one of them (activate on decompose(params))",
    "attention weighs what they do token by token",
)
