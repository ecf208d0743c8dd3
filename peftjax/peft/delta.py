"""Weight deltas: what is common to methods that add a matrix of few numbers to a weight.

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = SomeDelta(base=W, ...)          y = x W + x ΔW

A method's file has a node derived from `Delta`, which says what ΔW is (and how x ΔW is computed without forming it, where that is
cheaper), and a frozen dataclass whose `attach` puts it around the chosen kernels by `wrap`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Kernel, Wrapping, dense
from peftjax.nn.tree import put
from peftjax.peft.dropout import drop
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target, select


class Delta(Wrapping):
    """W + ΔW on a linear kernel. Subclasses have the fields `base`, `dropout` (rate [] or None), `name`, and their own."""

    dropout: jax.Array | None
    name: str

    adds = True

    def delta(self) -> jax.Array:
        """ΔW [in, out] float32; with a leading L outside the scanned body."""
        raise TypeError(f"{type(self).__name__} has no dense form")

    def factors(self) -> tuple[jax.Array, jax.Array] | None:
        """(a [R, in], b [R, out]) with ΔW = aᵀb, float32, where ΔW is of low rank whatever the values are; None where it is not."""
        return None

    def change(self, x: jax.Array) -> jax.Array:
        """x ΔW: x [..., in] -> [..., out], in x's dtype. Where this is not given anew, ΔW is formed, one layer at a time."""
        return jax.lax.dot_general(x, self.delta().astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))

    def around(self, x, product, key=None):
        return product(x) + self.change(drop(x, self.dropout, key, self.name))

    def off(self):
        own = {field: getattr(self, field) for field in self.trainable if getattr(self, field) is not None}
        return dataclasses.replace(self, **{field: jnp.zeros_like(value) for field, value in own.items()})

    def merge(self):
        base = dense(self.base)
        return (base.astype(jnp.float32) + self.delta()).astype(base.dtype)


def wrap(
    params: dict, key: jax.Array, targets: str | Sequence[str], layers: Sequence[int] | None, name: str,
    make: Callable[[Target, Draw], Any],
) -> dict:
    """A new tree with `make(target, draw)` in the place of every target, a linear kernel; `target.value` is what stands there.

    Raises:
        ValueError: a target or a layer that names nothing.
    """
    for target in select(params, targets, layers, names=("kernel",)):
        params = put(params, target.path, make(target, Draw(key, f"{target.logical}/{name}", target.layers)))
    return params


def weight_under(kernel: Any) -> Any:
    """The weight below all adapters of a kernel: what an update that multiplies it reads, whichever was attached first."""
    while isinstance(kernel, Kernel) and (hasattr(kernel, "name") or hasattr(kernel, "bare")):
        kernel = kernel.bare if hasattr(kernel, "bare") else kernel.base
    return kernel
