"""Frozen means frozen: the tree is taken apart before anything is differentiated.

    trainable, frozen = partition(params)
    grads = jax.grad(lambda t: loss(combine(t, frozen)))(trainable)

Both halves have the structure of `params` with None where the other half holds the leaf, so that paths stay what they are.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.quant import Quantised
from peftjax.nn.shared import is_shared
from peftjax.nn.tree import path_of
from peftjax.peft.attach import adapters


def partition(params: dict, names: Iterable[str] | None = None) -> tuple[dict, dict]:
    """(trainable, frozen). Trainable is what the nodes and entries say of themselves, of the named adapters (default: of all).

    Raises:
        ValueError: a name that no adapter has, or nothing to train.
        TypeError: a trainable leaf that has no gradient (integers).
    """
    known = set(adapters(params))
    names = known if names is None else set(names)
    if not names or not names <= known:
        raise ValueError(f"nothing to train: adapters asked for {sorted(names) or 'none'}, in the tree {sorted(known) or 'none'}")
    marks = _mark(params, names)
    trainable = jax.tree.map(lambda leaf, mark: leaf if mark else None, params, marks)
    frozen = jax.tree.map(lambda leaf, mark: None if mark else leaf, params, marks)
    for keys, leaf in jax.tree_util.tree_flatten_with_path(trainable)[0]:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{path_of(keys)} is {leaf.dtype} and has no gradient; it cannot be trainable")
    return trainable, frozen


def _mark(value: Any, names: set[str]) -> Any:
    """The same structure with True at trainable leaves."""
    if isinstance(value, dict):
        return {name: _mark(child, names) for name, child in value.items()}
    if isinstance(value, Kernel | Entry):
        own = value.trainable if getattr(value, "name", None) in names else ()
        marks = {}
        for field in value.array_fields:
            child = getattr(value, field)
            marks[field] = child if child is None or is_shared(child) else (True if field in own else _mark(child, names))
        return dataclasses.replace(value, **marks)
    return False


def kept(frozen: dict) -> dict:
    """The frozen half with None at all leaves but those that are a run's own, and not to be had again from its methods and base: fields
    that a node names in `kept`, where a LoRA started, and all that an adapter holds that is not trained. They lie in the run's checkpoints
    beside the trainables."""
    return jax.tree.map(lambda leaf, mark: leaf if mark else None, frozen, _kept(frozen))


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _kept(child) for name, child in value.items()}
    if isinstance(value, Kernel | Entry):
        own = {field: getattr(value, field) for field in value.array_fields}
        absent = {field for field, child in own.items() if child is None or is_shared(child)}
        fields = set(getattr(value, "kept", ()))
        if hasattr(value, "name") and set(value.trainable) & (set(own) - absent):  # a half without what is trained holds it all the same
            fields = set(own) - {"base"}
        marks = {field: jax.tree.map(lambda _: True, child) if field in fields else _kept(child)
                 for field, child in own.items() if field not in absent}
        return dataclasses.replace(value, **{field: own[field] for field in absent}, **marks)
    return None if value is None else False


def combine(trainable: dict, frozen: dict) -> dict:
    """The whole tree of two halves."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None)


def nothing(params: dict) -> dict:
    """The trainable half of a tree in which nothing is trained: its structure with no leaves."""
    return jax.tree.map(lambda _: None, params)


def size(tree: Any) -> tuple[int, int]:
    """(number of values, bytes) of all leaves. A quantised kernel has as many values as the weight it stands for."""
    values = 0
    for value in jax.tree.leaves(tree, is_leaf=lambda value: isinstance(value, Quantised)):
        if not isinstance(value, Quantised):
            values += value.size
        elif jax.tree.leaves(value):  # the other half of a partition holds its structure alone
            values += math.prod(value.shape)
    return values, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
