"""Merging: adapters folded into the weights they stand beside. The input tree is never touched.

    merge(params)                   dense weights, also where the base was quantised
    merge_into(params, ...)         weights in the form they had: what was quantised is quantised again, with a certificate of the drift
    dequantised(params)             every quantised weight dense, adapters as they are
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, Kernel, Tied, dense
from peftjax.nn.quant import Quantised
from peftjax.nn.shared import STORE, SharedValue, fill, is_shared
from peftjax.nn.tree import get, put, walk
from peftjax.peft.anneal import behind_kernels
from peftjax.peft.attach import activate, adapters, names_in
from peftjax.peft.certificate import USUAL, Budget, Certificate, Drift, Logits, Sample, certify
from peftjax.peft.requantise import requantise


def merge(params: dict, names: Iterable[str] | None = None, strict: bool = True) -> dict:
    """A new tree in which the named adapters (default: all) are part of dense weights, and no other adapter remains.

    Args:
        params: the tree; it stays as it is, so keeping it is how to unmerge.
        names: adapters to merge.
        strict: with False, entries at sites that cannot be merged stay beside the merged weights; with True they are an error.

    Raises:
        TypeError: something of the named adapters has no dense form, with its path.
        ValueError: a merged weight or bias is not finite, with its path; while tracing this is not known.
    """
    return _folded(_chosen(params, names, strict), lambda path, value: value.merge())


def merge_into(
    params: dict, names: Iterable[str] | None = None, *, logits: Logits, sample: Sample, budget: Budget = USUAL, strict: bool = True
) -> tuple[dict, Certificate]:
    """The same with weights in the form they had: the sum of a quantised weight and what adapters add is quantised again by the weight's
    own scheme, one layer at a time; dense weights stay dense. The tree is given back only within the budget.

    Args:
        names, strict: as of `merge`.
        logits, sample: what the drift is measured on, see `peftjax.peft.certificate`.
        budget: what it may be.

    Returns:
        (the tree, what was measured). An adapter that adds nothing costs nothing, whatever the form.

    Raises:
        TypeError: as `merge`.
        ValueError: the base is not quantised where the adapters are, or the budget is exceeded: what was measured and what to do instead.
    """
    before, kernels = _chosen(params, names, strict), {}

    def fold(path: str, value: Kernel) -> Any:
        like = quantised_under(value)
        if like is None:
            return value.merge()
        node, drift = _requantised(value, like)
        kernels[path] = Drift(*map(float, drift))
        return node

    after = _folded(before, fold)
    if not kernels:
        raise ValueError("none of these adapters stands on a quantised weight; merge() folds them into the dense ones")
    certificate = certify(kernels, before, after, logits, sample)
    budget.require(certificate)
    return after, certificate


def dequantised(params: dict) -> dict:
    """A new tree in which every quantised weight that stands by itself is dense."""
    for path, value in list(walk(params)):
        if isinstance(value, Quantised):
            params = put(params, path, value.merge())
    return params


def quantised_under(value: Any) -> Quantised | None:
    """The quantised weight that a node wraps, however deep, with rows and columns as the node has them; None where it is dense."""
    turned = False
    while isinstance(value, Kernel) and not isinstance(value, Quantised):
        turned ^= isinstance(value, Tied)
        value = getattr(value, "base", None)
    if not isinstance(value, Quantised):
        return None
    return dataclasses.replace(value, rows=not value.rows) if turned else value


def _chosen(params: dict, names: Iterable[str] | None, strict: bool) -> dict:
    """The tree with the named adapters alone, linear bottlenecks behind the weight that they are a part of."""
    params, reasons = behind_kernels(activate(params, adapters(params) if names is None else names))
    stuck = [path for path, value in walk(params) if isinstance(value, Entry) and not isinstance(value, SharedValue)]
    if stuck and strict:
        why = "; ".join(f"{path}: {reasons[path]}" for path in stuck if path in reasons)
        raise TypeError(
            f"{', '.join(stuck)}: a network at a site has no dense weight to be merged into; merge(strict=False) keeps it beside"
            f"{f' ({why})' if why else ''}"
        )
    return params


def _folded(params: dict, fold: Callable[[str, Kernel], Any]) -> dict:
    """The tree with `fold(path, node)` in the place of each node of an adapter."""
    for path, value in list(walk(params)):
        if isinstance(value, Kernel) and (names_in(value) or isinstance(value, Tied)):  # a head left alone by an adapted embedding
            value = fill(value, params.get(STORE, {}), value.shape[0] if len(value.shape) > 2 else None)
            try:
                params = put(params, path, fold(path, value))
            except TypeError as error:
                raise TypeError(f"{path}: {error}") from error
            bias = f"{path.rpartition('/')[0]}/bias"
            params = _with_bias(params, bias, value)
            for made in (path, bias):
                _require_finite(made, get(params, made))
    return params if any(map(is_shared, jax.tree.leaves(params, is_leaf=is_shared))) else put(params, STORE, None)


def _require_finite(path: str, made: Any) -> None:
    for leaf in jax.tree.leaves(made):
        if not isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.floating):
            if not bool(jnp.all(jnp.isfinite(leaf))):
                raise ValueError(f"{path}: merged it holds numbers that are not finite; nothing was changed")


@jax.jit
def _requantised(value: Kernel, like: Quantised) -> tuple[Quantised, Drift]:
    """(node, drift) of an adapted kernel or a stack of them."""

    def layer(pair):
        value, like = pair
        merged, old = value.merge().astype(jnp.float32), like.merge().astype(jnp.float32)
        node = requantise(like, merged)
        error = node.merge().astype(jnp.float32) - merged
        return node, [jnp.sum(jnp.square(part)) for part in (error, merged, merged - old)]

    node, sums = layer((value, like)) if len(like.shape) == 2 else jax.lax.map(layer, (value, like))
    error, weight, delta = (jnp.sqrt(jnp.sum(part)) for part in sums)
    return node, Drift(error / jnp.where(weight > 0, weight, 1), jnp.where(delta > 0, error / jnp.where(delta > 0, delta, 1), 0))


def _with_bias(params: dict, path: str, node: Kernel) -> dict:
    """The tree with the bias at `path` as it is beside the weight that `node` merges into."""
    there, own = get(params, path), node.merged_bias()
    if there is not None:
        bias = node.changed_bias(dense(there))
        return put(params, path, (bias if own is None else bias + own).astype(there.dtype))
    return params if own is None else put(params, path, own)
