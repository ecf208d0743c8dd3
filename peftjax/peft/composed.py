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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey

from peftjax.nn.kernels import Entry, Kernel, Wrapping, attend, dense, dot, lookup
from peftjax.peft.composed_weight import Folded, fold
from peftjax.peft.composition import Average, Composition, Stack, blocks, names
from peftjax.peft.outcomes import on, pass_through, stand


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
        return dot(x, stand(self.plan, self, self.base), key)

    def lookup(self, ids, dtype, key=None):
        return lookup(ids, stand(self.plan, self, self.base), dtype, key)

    def attend(self, x, key=None):
        return attend(x, stand(self.plan, self, self.base), key)

    def merge(self):
        bare = None if self.base is None else dense(self.base).astype(jnp.float32)
        return fold(self.plan, self, Folded(bare, None, None, bare)).base.astype(self.dtype)

    def merged_bias(self):
        return None if self.base is None else fold(self.plan, self, self._bottom(None), biases=True).own

    def changed_bias(self, bias):
        if len(self.shape) == 2:
            return stand(self.plan, self, self.base).changed_bias(bias)
        return fold(self.plan, self, self._bottom(bias), biases=True).beside

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
        return Folded(jnp.zeros(self.shape), own, bias, None)


@dataclasses.dataclass(frozen=True)
class ComposedEntry(Entry):
    """The entry, in the place of a site's entries by name. parts: these; the rest as in `Composed`."""

    parts: dict[str, Entry]
    weights: dict[str, jax.Array]
    ids: dict[str, jax.Array]
    plan: Composition

    def __call__(self, x, key=None, **context):
        """x [B, T, D] -> the same, as the entries make it together."""
        return pass_through(self.plan, self, x, key, context)


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
