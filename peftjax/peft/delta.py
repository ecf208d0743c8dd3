"""Weight deltas: what is common to methods that add a matrix of few numbers to a weight.

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = SomeDelta(base=W, ...)          y = x W + x ΔW

A method's file has a node derived from `Delta`, which says what ΔW is (and how x ΔW is computed without forming it, where that is
cheaper), and a frozen dataclass whose `attach` puts it around the chosen kernels by `wrap`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Kernel, Wrapping, dense
from peftjax.nn.thin import expand, shrink
from peftjax.nn.tree import put
from peftjax.nn.wide import wide
from peftjax.peft import low_rank
from peftjax.peft.dropout import drop
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target, require_used, select


class Delta(Wrapping):
    """W + ΔW on a linear kernel. Subclasses have the fields `base`, `dropout` (rate [] or None), `name`, and their own."""

    dropout: jax.Array | None
    name: str

    adds = True

    def delta(self) -> jax.Array:
        """ΔW [in, out] float32; with a leading L outside the scanned body. Where this is not given anew, it is the product of `factors`."""
        factors = self.factors()
        if factors is None:
            raise TypeError(f"{type(self).__name__} has no dense form")
        return jnp.einsum("...ri,...ro->...io", *factors)

    def factors(self) -> tuple[jax.Array, jax.Array] | None:
        """(a [R, in], b [R, out]) with ΔW = aᵀb, float32, where ΔW is of low rank whatever the values are; None where it is not."""
        return None

    def change(self, x: jax.Array) -> jax.Array:
        """x ΔW: x [..., in] -> [..., out], in x's dtype. Where this is not given anew, it goes through `factors`, and where there are none
        ΔW is formed, one layer at a time."""
        factors = self.factors()
        if factors is not None:
            a, b = factors
            return expand(shrink(x, a), b)
        return jax.lax.dot_general(x, self.delta().astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))

    def around(self, x, product, key=None):
        return product(x) + self.change(drop(x, self.dropout, key, self.name))

    def off(self):
        own = {field: getattr(self, field) for field in self.trainable if getattr(self, field) is not None}
        return dataclasses.replace(self, **{field: jnp.zeros_like(value) for field, value in own.items()})

    def merge(self):
        base = dense(self.base)
        return (base.astype(wide(base.dtype)) + self.delta()).astype(base.dtype)


class LowRank(Delta):
    """ΔW = s AᵀB of thin matrices, `rows()`; x Aᵀ may be computed beside that of other kernels. Subclasses have the field `scale`, too."""

    scale: jax.Array

    def rows(self) -> tuple[jax.Array, jax.Array]:
        """(A [R, in], B [R, out])."""
        raise TypeError(f"{type(self).__name__} does not say its thin matrices")

    def thin_input(self, training):
        return None if training and self.dropout is not None else self.rows()[0]

    def around(self, x, product, key=None, thin=None):
        return product(x) + low_rank.times(drop(x, self.dropout, key, self.name), *self.rows(), self.scale, thin)

    def change(self, x):
        return low_rank.times(x, *self.rows(), self.scale)

    def factors(self):
        a, b = self.rows()
        return a, b * self.scale[..., None, None]

    def off(self):
        return dataclasses.replace(self, scale=jnp.zeros_like(self.scale))


def wrap(
    params: dict, key: jax.Array, targets: str | Sequence[str], layers: Sequence[int] | None, name: str,
    make: Callable[[Target, Draw], Any], **patterns: Mapping[str, Any],
) -> dict:
    """A new tree with `make(target, draw)` in the place of every target, a linear kernel; `target.value` is what stands there.

    Args:
        patterns: exceptions by target or by layer, under the names of the method's fields that hold them.

    Raises:
        ValueError: a target, a pattern or a layer that names nothing.
    """
    chosen = select(params, targets, layers, names=("kernel",))
    for what, table in patterns.items():
        require_used(table, chosen, what)
    for target in chosen:
        params = put(params, target.path, make(target, Draw(key, f"{target.logical}/{name}", target.layers)))
    return params


def weight_under(kernel: Any) -> Any:
    """The weight below all adapters of a kernel: what an update that multiplies it reads, whichever was attached first."""
    while isinstance(kernel, Kernel) and (hasattr(kernel, "name") or hasattr(kernel, "bare")):
        kernel = kernel.bare if hasattr(kernel, "bare") else kernel.base
    return kernel
