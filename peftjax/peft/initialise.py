"""Initial values of a LoRA that take more than its weight: statistics of data, or the dense weight under a quantised one.

    params = attach(base, methods, key)
    found = {kind: measure(loss, base, batches, targets, kind) for kind, targets in wanted(methods).items()}
    params = initialise(params, methods, found, key)

    loftq(params, dense)      Q + s aᵀb near W: LoRA's start makes up for what quantising lost (2310.08659, 2023)
    qpissa(params, dense)     a and b are the largest part of W, and Q the rest (2404.02948, 2024)

Both take turns: a and b are the nearest of their rank to W - Q, Q is W - s aᵀb quantised. Q keeps its scheme, and no turn makes
‖W - Q - s aᵀb‖ larger, since the grid that Q had is a candidate for it. The first turn of LoftQ leaves Q, and so the base, what it is;
after any other the base is another one, to which the adapter belongs: `peftjax.train.quantised_start` writes both.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.nn.kernels import Kernel, dense
from peftjax.nn.quant import Quantised
from peftjax.nn.tree import get, place, put, walk
from peftjax.peft.bounds import require_positive
from peftjax.peft.delta import weight_under
from peftjax.peft.inits import Init, factors, parse, principal, stacked
from peftjax.peft.keys import key_at
from peftjax.peft.lora import LoRA
from peftjax.peft.probe import Statistics
from peftjax.peft.ranks import own_rows
from peftjax.peft.requantise import requantise
from peftjax.peft.select import as_patterns
from peftjax.peft.shifted import ShiftedLoRA

LOSSLESS = 1e-6  # of the largest weight: an error that is rounding


def wanted(methods: Sequence[Any]) -> dict[str, list[str]]:
    """What these methods' inits need: kind, of statistics or "dense", -> targets."""
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
        found: kind -> path of a kernel -> its statistics, as of `peftjax.peft.probe.measure`; of "dense" the weight, [in, out] or
            [L, in, out].
        key: of what is random.

    Raises:
        ValueError: a kernel without statistics, or one that no token reached.
    """
    for method in methods:
        start = _start(method)
        if start is None or start.needs is None:
            continue
        if start.kind == "loftq":
            weights: dict = {}
            for path, weight in found.get("dense", {}).items():
                weights = put(weights, path, weight)
            require_loss(params, weights, method.name)
            params = loftq(params, weights, method.name, rounds=1)
            continue
        nodes = {path: node for path, node in ((path, _named(value, method.name)) for path, value in walk(params)) if node is not None}
        statistics = {path: _statistics(found, start, path) for path in nodes}
        make = _eva if start.kind == "eva" else _shifted
        for path, node in make(nodes, statistics, start, method, key).items():
            params = put(params, path, _replaced(get(params, path), method.name, lambda _, n=node: n))
    return params


def loftq(params: dict, dense_params: dict, name: str = "default", rounds: int = 5) -> dict:
    """A new tree whose LoRAs on quantised weights Q start at the nearest matrix of their rank to W - Q, so that Q + s aᵀb is nearer to W.

    Args:
        params: with LoRAs of that name, as attached.
        dense_params: holds W at the same paths.
        rounds: how often a and b are found (the paper's default is 5, HF PEFT's 1), with Q quantised anew between them: 1 leaves the base.

    Raises:
        ValueError: no such LoRA stands on a quantised weight, or a path has no dense weight.
    """

    def start(node: LoRA, weight: jax.Array, path: str) -> LoRA:
        node = _nearest(weight, node)
        for _ in range(rounds - 1):
            node = _nearest(weight, _rest(weight, node))
        return node

    return _on_quantised(params, dense_params, name, rounds, start)


def qpissa(params: dict, dense_params: dict, name: str = "default", rounds: int = 5) -> dict:
    """A new tree whose LoRAs on quantised weights are the largest parts of W, and whose bases are the rest, quantised as they were. What
    detaching leaves is that rest, which is no use by itself: the adapter belongs to this tree.

    Args:
        rounds: how often the rest is quantised (5 in the paper's QPiSSA-5-iter, of which 1 is plain QPiSSA).

    Arguments and errors otherwise as of `loftq`.
    """

    def start(node: LoRA, weight: jax.Array, path: str) -> LoRA:
        node = _rest(weight, dataclasses.replace(node, **_of_rank(weight, node)))
        for _ in range(rounds - 1):
            node = _rest(weight, _nearest(weight, node))
        return node

    return _on_quantised(params, dense_params, name, rounds, start)


def require_loss(params: dict, dense_params: dict, name: str = "default") -> None:
    """Raises ValueError where Q is W: LoftQ would start a and b at nothing, from where they are never trained. Arguments as of `loftq`."""

    def lossy(node: LoRA, weight: jax.Array, path: str) -> LoRA:
        lost = weight - dense(node.base).astype(jnp.float32)
        if float(jnp.max(jnp.abs(lost))) <= LOSSLESS * float(jnp.max(jnp.abs(weight))):
            raise ValueError(f"{path} is held without loss, and LoftQ has nothing to make up for; hold it otherwise, or take another init")
        return node

    _on_quantised(params, dense_params, name, 1, lossy)


def _nearest(weight: jax.Array, node: LoRA) -> LoRA:
    """The node with s aᵀb the nearest of its ranks to W - Q."""
    return dataclasses.replace(node, **_of_rank(weight - dense(node.base).astype(jnp.float32), node))


def _rest(weight: jax.Array, node: LoRA) -> LoRA:
    """The node on Q as near to W - s aᵀb as its scheme allows."""
    return dataclasses.replace(node, base=requantise(node.base, weight - node.delta()))


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


def _of_rank(matrix: jax.Array, node: LoRA) -> dict[str, jax.Array]:
    """a and b with s aᵀb the nearest to a matrix, or to each of a stack, of the node's ranks."""
    ranks = _ranks(node)
    a, b = _largest(matrix, node.scale, max(ranks))
    return {"a": own_rows(a, ranks), "b": own_rows(b, ranks)}


@functools.partial(jax.jit, static_argnums=2)
def _largest(matrix: jax.Array, scale: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    if matrix.ndim > 2:
        return jax.lax.map(lambda pair: _largest(*pair, rank), (matrix, scale))
    return factors(Init("pissa", ()), matrix, scale, rank, jax.random.key(0))


def _on_quantised(params: dict, dense_params: dict, name: str, rounds: int, start: Callable[[LoRA, jax.Array, str], LoRA]) -> dict:
    require_positive("a start on a quantised weight", rounds=rounds)
    found = [path for path, value in walk(params) if isinstance(node := _named(value, name), LoRA) and isinstance(node.base, Quantised)]
    if not found:
        raise ValueError(f"no LoRA called {name!r} stands on a quantised weight")
    for path in found:
        weight = get(dense_params, path)
        if weight is None or isinstance(weight, Kernel):
            raise ValueError(f"{path} has no dense weight in the tree that was given for it")
        weight = weight.astype(jnp.float32)
        params = put(params, path, _replaced(get(params, path), name, lambda node, w=weight, p=path: start(node, w, p)))
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
