"""Initial values of a LoRA that take more than its weight: statistics of data, or the dense weight under a quantised one.

    params = attach(base, methods, key)
    found = {kind: measure(loss, base, batches, targets, kind) for kind, targets in wanted(methods).items()}
    params = initialise(params, methods, found, key)

    loftq(params, dense)      LoRA's start makes up for what quantising lost (2310.08659, 2023); the base stays
    qpissa(params, dense)     PiSSA of the dense weight, and what it leaves is quantised anew (2404.02948, 2024); the base is another
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.nn.kernels import Kernel, dense
from peftjax.nn.quant import Quantised
from peftjax.nn.tree import get, place, put, walk
from peftjax.peft.delta import weight_under
from peftjax.peft.inits import Init, factors, parse, principal, stacked
from peftjax.peft.keys import key_at
from peftjax.peft.lora import LoRA
from peftjax.peft.probe import Statistics
from peftjax.peft.ranks import own_rows
from peftjax.peft.requantise import requantise
from peftjax.peft.select import as_patterns
from peftjax.peft.shifted import ShiftedLoRA


def wanted(methods: Sequence[Any]) -> dict[str, list[str]]:
    """The statistics that these methods' inits need: kind -> targets."""
    needs: dict[str, list[str]] = {}
    for method in methods:
        start = _start(method)
        if start is not None and start.needs is not None:
            needs.setdefault(start.needs, []).extend(as_patterns(method.targets))
    return needs


def initialise(params: dict, methods: Sequence[Any], found: Mapping[str, Mapping[str, Statistics]], key: jax.Array) -> dict:
    """A new tree in which the LoRAs of `methods` whose init needs statistics start from them; all others stay as they are.

    Args:
        params: as attached, before any training.
        found: kind -> path of a kernel -> its statistics, as of `peftjax.peft.probe.measure`.
        key: of what is random.

    Raises:
        ValueError: a kernel without statistics, or one that no token reached.
    """
    for method in methods:
        start = _start(method)
        if start is None or start.needs is None:
            continue
        nodes = {path: node for path, node in ((path, _named(value, method.name)) for path, value in walk(params)) if node is not None}
        statistics = {path: _statistics(found, start, path) for path in nodes}
        make = _eva if start.kind == "eva" else _shifted
        for path, node in make(nodes, statistics, start, method, key).items():
            params = put(params, path, _replaced(get(params, path), method.name, lambda _, n=node: n))
    return params


def loftq(params: dict, dense_params: dict, name: str = "default") -> dict:
    """A new tree whose LoRAs on quantised weights Q start at the nearest matrix of their rank to W - Q, so that Q + s aᵀb is nearer to W.

    One round of the paper's, which leaves Q, and so the base, what it is; further rounds, which quantise W - s aᵀb anew, would not.

    Args:
        params: with LoRAs of that name, as attached.
        dense_params: holds W at the same paths.

    Raises:
        ValueError: no such LoRA stands on a quantised weight, or a path has no dense weight.
    """

    def start(node: LoRA, weight: jax.Array) -> LoRA:
        a, b = _nearest(weight.astype(jnp.float32) - dense(node.base).astype(jnp.float32), node)
        return dataclasses.replace(node, a=a, b=b)

    return _on_quantised(params, dense_params, name, start)


def qpissa(params: dict, dense_params: dict, name: str = "default") -> dict:
    """A new tree whose LoRAs on quantised weights are the largest parts of W, and whose bases are the rest, quantised as they were. What
    detaching leaves is that rest, which is no use by itself: the adapter belongs to this tree. Arguments and errors as of `loftq`."""

    def start(node: LoRA, weight: jax.Array) -> LoRA:
        a, b = _nearest(weight.astype(jnp.float32), node)
        started = dataclasses.replace(node, a=a, b=b)
        return dataclasses.replace(started, base=requantise(node.base, weight.astype(jnp.float32) - started.delta()))

    return _on_quantised(params, dense_params, name, start)


def _start(method: Any) -> Init | None:
    return parse(method.init) if isinstance(getattr(method, "init", None), str) and hasattr(method, "freeze_a") else None


def _statistics(found: Mapping, start: Init, path: str) -> Statistics:
    if path not in found.get(start.needs, {}):
        raise ValueError(f"init {start.kind!r} of {path} needs its {start.needs}, which were not measured")
    statistics = found[start.needs][path]
    reached = statistics.count if start.needs == "inputs" else jnp.sum(jnp.abs(statistics.gradient), axis=(-2, -1))
    if not np.all(np.asarray(reached) > 0):
        raise ValueError(f"init {start.kind!r} of {path}: no token of the batches reaches the loss from there")
    return statistics


def _shifted(nodes: dict[str, ShiftedLoRA], found: dict[str, Statistics], start: Init, method: Any, key: jax.Array) -> dict:
    made = {}
    for path, node in nodes.items():
        logical, layers = place(path, node.a.shape[0])
        at = key_at(key, f"{logical}/{method.name}/start")
        a, b = stacked(start, weight_under(node), node.scale, _ranks(node), at, layers, found[path])
        made[path] = dataclasses.replace(node, a=a, b=b, start_a=jnp.array(a), start_b=jnp.array(b))
    return made


def _eva(nodes: dict[str, LoRA], found: dict[str, Statistics], start: Init, method: Any, key: jax.Array) -> dict:
    """Directions, of which those that explain most of their kernel's variance are kept over all kernels and layers, as many as there were
    ranks. A kernel may get none. The scale stays, so that every direction learns at one speed whatever its kernel's rank."""
    budget, directions, shares = 0, {}, {}
    for path, node in nodes.items():
        covariance = found[path].covariance()
        top = min(node.a.shape[-2:])
        one = jax.jit(lambda square, top=top: principal(square, top))
        directions[path], shares[path] = one(covariance) if covariance.ndim == 2 else jax.lax.map(one, covariance)
        ranks = _ranks(node)
        budget += sum(ranks)
        room = np.array([start.rows(rank) for rank in ranks]).reshape(shares[path].shape[:-1])
        shares[path] = np.where(np.arange(top) < room[..., None], np.asarray(shares[path]), -1.0)
    flat = np.concatenate([share.reshape(-1) for share in shares.values()])
    kept = np.zeros(flat.shape, bool)
    kept[np.argsort(-flat, kind="stable")[:budget]] = True
    kept &= flat >= 0
    made, taken = {}, 0
    for path, node in nodes.items():
        share = shares[path]
        own = kept[taken:taken + share.size].reshape(share.shape)
        taken += share.size
        a = jnp.where(jnp.asarray(own)[..., None], directions[path], 0.0)
        room = [(0, 0)] * (a.ndim - 2) + [(0, node.a.shape[-2] - a.shape[-2]), (0, 0)]
        made[path] = dataclasses.replace(node, a=jnp.pad(a, room))
    return made


def _ranks(node: LoRA | ShiftedLoRA) -> list[int]:
    """The rank of each layer: rows past it are zero."""
    used = np.asarray(jnp.any(node.a != 0, axis=-1) | jnp.any(node.b != 0, axis=-1))
    return [int(rows.sum()) for rows in used.reshape(-1, used.shape[-1])]


def _nearest(matrix: jax.Array, node: LoRA) -> tuple[jax.Array, jax.Array]:
    """(a, b) with s aᵀb the nearest to a matrix, or to each of a stack, of the node's ranks."""
    ranks = _ranks(node)
    one = jax.jit(lambda value, scale: factors(Init("pissa", ()), value, scale, max(ranks), jax.random.key(0)))
    if matrix.ndim == 2:
        return one(matrix, node.scale)
    return tuple(own_rows(value, ranks) for value in jax.lax.map(lambda pair: one(*pair), (matrix, node.scale)))


def _on_quantised(params: dict, dense_params: dict, name: str, start: Callable[[LoRA, jax.Array], LoRA]) -> dict:
    found = [path for path, value in walk(params) if isinstance(node := _named(value, name), LoRA) and isinstance(node.base, Quantised)]
    if not found:
        raise ValueError(f"no LoRA called {name!r} stands on a quantised weight")
    for path in found:
        weight = get(dense_params, path)
        if weight is None or isinstance(weight, Kernel):
            raise ValueError(f"{path} has no dense weight in the tree that was given for it")
        params = put(params, path, _replaced(get(params, path), name, lambda node, w=weight: start(node, w)))
    return params


def _named(value: Any, name: str) -> LoRA | ShiftedLoRA | None:
    """The LoRA of a name among the nodes at a kernel."""
    while isinstance(value, Kernel):
        if isinstance(value, LoRA | ShiftedLoRA) and value.name == name:
            return value
        value = getattr(value, "base", None)
    return None


def _replaced(value: Any, name: str, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, LoRA | ShiftedLoRA) and value.name == name:
        return change(value)
    return dataclasses.replace(value, base=_replaced(value.base, name, change))
