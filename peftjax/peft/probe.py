"""Statistics of what passes through kernels, taken as the gradients of zeros.

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = Probe(base=W, second=0 [L, in, in], total=0 [L, in], count=0 [L], gradient=0 [L, in, out])

A probe multiplies as W does. Nothing reads its zeros, and what the backward pass gives as their gradients is, with dy the gradient of a
token's product:

    "inputs"     second = Σ xᵀx,  total = Σ x,  count = Σ 1      over tokens by which the loss is reached from here: dy is not zero
    "gradient"   gradient = Σ xᵀ dy                              the gradient of W, which may be quantised

So one `jax.grad` of a loss, through scan, remat and jit, measures all layers, and this file needs to know no model:

    found = measure(lambda params, batch: jnp.sum(losses(params, batch)), params, batches, targets="all-linear", kinds="inputs")
    found["blocks/attn/q/kernel"].mean_square()      [L, in, in]

Inputs of width `in` take in² values a layer: `at_once` measures a few kernels at a time, with a pass over the batches for each group.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from peftjax.hints import did_you_mean
from peftjax.nn.kernels import Wrapping, node
from peftjax.nn.tree import get, put
from peftjax.peft.partition import combine, partition
from peftjax.peft.select import as_patterns, select

KINDS = ("inputs", "gradient")
NAME = "probe"


class Statistics(NamedTuple):
    """Sums over tokens, float32, with a leading L in a stack: second [in, in], total [in], count [] of "inputs"; gradient [in, out] of
    "gradient"; None for what was not measured."""

    second: jax.Array | None
    total: jax.Array | None
    count: jax.Array | None
    gradient: jax.Array | None

    def mean_square(self) -> jax.Array:
        """E[xᵀx] [in, in]."""
        return self.second / jnp.maximum(self.count, 1)[..., None, None]

    def covariance(self) -> jax.Array:
        """E[xᵀx] - E[x]ᵀE[x] [in, in]."""
        mean = self.total / jnp.maximum(self.count, 1)[..., None]
        return self.mean_square() - mean[..., :, None] * mean[..., None, :]


@node(arrays=("base", "second", "total", "count", "gradient"), static=("name",))
@dataclasses.dataclass(frozen=True)
class Probe(Wrapping):
    """The node. base: kernel [in, out]; the rest: zeros of the shapes of `Statistics`, or None; all with a leading L outside the scanned
    body."""

    base: Any
    second: jax.Array | None
    total: jax.Array | None
    count: jax.Array | None
    gradient: jax.Array | None
    name: str = NAME

    trainable = ("second", "total", "count", "gradient")

    def around(self, x, product, key=None):
        kinds = tuple(kind for kind, zeros in zip(KINDS, (self.second, self.gradient), strict=True) if zeros is not None)
        return _watched(kinds, x, product(x), Statistics(self.second, self.total, self.count, self.gradient))

    def merge(self):
        raise TypeError("a probe measures and is no part of a weight; detach it")


def probe(params: dict, targets: str | Sequence[str], kinds: str | Sequence[str], layers: Sequence[int] | None = None) -> dict:
    """A new tree with a probe around every target, a linear kernel with or without adapters.

    Raises:
        ValueError: a kind that is none of `KINDS`, a target or a layer that names nothing.
    """
    kinds = as_patterns(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"no statistic is called {kind!r}{did_you_mean(kind, KINDS)}; there are {', '.join(KINDS)}")
    for target in select(params, targets, layers, names=("kernel",)):
        rows, width = target.value.shape[-2:]
        lead = () if target.layers is None else (len(target.layers),)
        inputs = [(*lead, rows, rows), (*lead, rows), lead] if "inputs" in kinds else [None] * 3
        shapes = [*inputs, (*lead, rows, width) if "gradient" in kinds else None]
        params = put(params, target.path, Probe(target.value, *(None if shape is None else jnp.zeros(shape) for shape in shapes)))
    return params


def measure(
    loss: Callable[[dict, Any], jax.Array], params: dict, batches: Iterable[Any], targets: str | Sequence[str] = "all-linear",
    kinds: str | Sequence[str] = "inputs", layers: Sequence[int] | None = None, at_once: int | None = None,
) -> dict[str, Statistics]:
    """Statistics of the targets, by path, summed over batches.

    Args:
        loss: (params, batch) -> scalar; a sum or a mean over tokens, as gradients are to be scaled.
        batches: trees of arrays of one shape; gone through once for each group.
        at_once: kernels (stacks of layers) in a group, default all.

    Raises:
        ValueError: as of `probe`, or no batch.
    """
    batches = list(batches)
    if not batches:
        raise ValueError("nothing to measure: there is no batch")
    paths = [target.path for target in select(params, targets, layers, names=("kernel",))]
    found = {}
    for start in range(0, len(paths), at_once or len(paths)):
        group = paths[start:start + (at_once or len(paths))]
        probed = _only(probe(params, targets, kinds, layers), params, group)
        sums, rest = partition(probed, [NAME])

        @functools.partial(jax.jit, donate_argnums=0)
        def add(sums, rest, batch):
            zeros = jax.tree.map(jnp.zeros_like, sums)
            return jax.tree.map(jnp.add, sums, jax.grad(lambda z: loss(combine(z, rest), batch))(zeros))

        for batch in batches:
            sums = add(sums, rest, batch)
        for path in group:
            value = get(sums, path)
            found[path] = Statistics(value.second, value.total, value.count, value.gradient)
    return found


def _only(probed: dict, params: dict, paths: Sequence[str]) -> dict:
    """`params` with the probes of `probed` at some paths."""
    for path in paths:
        params = put(params, path, get(probed, path))
    return params


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _watched(kinds: tuple[str, ...], x: jax.Array, y: jax.Array, zeros: Statistics) -> jax.Array:
    """y, whatever x and the zeros are; the gradients of the zeros are the statistics."""
    return y


def _watched_forward(kinds, x, y, zeros):
    return y, x


def _watched_backward(kinds, x, dy):
    second = total = count = gradient = None
    rows, slopes = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    product = functools.partial(jax.lax.dot_general, dimension_numbers=(((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    if "inputs" in kinds:
        reached = jnp.any(slopes != 0, axis=-1)
        counted = jnp.where(reached[:, None], rows, 0)
        second, total, count = product(counted, counted), jnp.sum(counted.astype(jnp.float32), axis=0), jnp.sum(reached, dtype=jnp.float32)
    if "gradient" in kinds:
        gradient = product(rows, slopes)
    return jnp.zeros_like(x), dy, Statistics(second, total, count, gradient)


_watched.defvjp(_watched_forward, _watched_backward)
