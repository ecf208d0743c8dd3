"""Members' trees made alike, so that they can lie on each other.

    alike(trees)            a rate of dropout that one member has and another has not is 0 there: it drops nothing, bit for bit
    signature(...)          members with equal signatures fit one stack
    grown(leaf, shape)      zeros behind the last row of each axis: rows past a member's own rank, zero in every factor of the product,
    cropped(leaf, shape)    stay zero, because their gradients are products of each other; and what lies in front of them
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.shared import is_shared
from peftjax.nn.tree import flatten

RATES = ("dropout", "stochastic_depth")


def alike(trees: Sequence[Any]) -> list[Any]:
    """Trees that differ in rates alone, each with a rate of 0 where it has none and another has one."""
    template = trees[0]
    for tree in trees[1:]:
        template = _with_rates(template, tree)
    return [_with_rates(tree, template) for tree in trees]


def _with_rates(value: Any, like: Any) -> Any:
    """`value` with zeros in the place of rates that `like` alone has."""
    if isinstance(value, dict):
        return {name: _with_rates(child, like[name]) for name, child in value.items()}
    if not isinstance(value, Kernel | Entry):
        return value
    changed = {}
    for field in value.array_fields:
        child, other = getattr(value, field), getattr(like, field)
        if field in RATES:
            changed[field] = jnp.zeros(other.shape, other.dtype) if child is None and other is not None else child
        elif isinstance(child, dict | Kernel | Entry):
            changed[field] = _with_rates(child, other)
    return dataclasses.replace(value, **changed)


def without_rates(value: Any) -> Any:
    """The tree with None in the place of all rates."""
    if isinstance(value, dict):
        return {name: without_rates(child) for name, child in value.items()}
    if not isinstance(value, Kernel | Entry):
        return value
    fields = {field: getattr(value, field) for field in value.array_fields}
    return dataclasses.replace(value, **{field: None if field in RATES else without_rates(child) for field, child in fields.items()})


def ranked(value: Any) -> Any:
    """The same structure with True at the leaves whose rows, on the last axis but one, may be more than are used."""
    if isinstance(value, dict):
        return {name: ranked(child) for name, child in value.items()}
    if isinstance(value, Kernel | Entry):
        fields = getattr(value, "ranked", ())
        children = {field: getattr(value, field) for field in value.array_fields}
        marks = {
            field: child if child is None or is_shared(child) else True if field in fields else ranked(child)
            for field, child in children.items()
        }
        return dataclasses.replace(value, **marks)
    return jax.tree.map(lambda _: False, value)


def signature(tree: Any, marks: dict[str, bool]) -> tuple:
    """What trees on one stack must have in common: structure, paths, dtypes and shapes; `marks` names the leaves, by path, whose rows may
    differ in number."""
    shapes = []
    for path, leaf in flatten(tree).items():
        shape = leaf.shape[:-2] + leaf.shape[-1:] if marks.get(path) else leaf.shape
        shapes.append((path, str(leaf.dtype), shape))
    return jax.tree.structure(tree), tuple(shapes)


def largest(trees: Sequence[dict[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Of flat trees of one signature, the shape that holds each leaf of all of them."""
    return {path: tuple(map(max, zip(*(tree[path].shape for tree in trees), strict=True))) for path in trees[0]}


def grown(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The leaf with zeros behind it up to `shape`."""
    if leaf.shape == tuple(shape):
        return leaf
    return jnp.pad(leaf, [(0, most - size) for size, most in zip(leaf.shape, shape, strict=True)])


def cropped(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The front of the leaf, of this shape."""
    return leaf if leaf.shape == tuple(shape) else leaf[tuple(slice(size) for size in shape)]
