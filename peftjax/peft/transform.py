"""Transforms: what is common to methods that change what goes into a weight, or what comes out of it.

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = SomeTransform(base=W, ...)        y = after(before(x) W),  both linear, so that it is a weight again

A method's file has a node derived from `Transform` and a frozen dataclass whose `attach` puts it around the chosen kernels by
`peftjax.peft.delta.wrap`. Both functions act on the last axis, and see one layer. Where `after` changes the whole output of a layer, the
base's bias goes through it too (`whole`).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Wrapping, dense
from peftjax.nn.wide import wide


class Transform(Wrapping):
    """The node. Subclasses have the fields `base`, `name`, and their own, and give `before`, `after` or both."""

    name: str
    whole: ClassVar[bool] = False

    def before(self, x: jax.Array) -> jax.Array:
        """x [..., in] -> [..., in], in x's dtype; linear in x."""
        return x

    def after(self, y: jax.Array) -> jax.Array:
        """y [..., out] -> [..., out], in y's dtype; linear in y."""
        return y

    def around(self, x, product, key=None):
        return self.after(product(self.before(x)))

    def merge(self):
        if len(self.shape) > 2:
            return jax.lax.map(type(self).merge, self)
        base = dense(self.base)
        with jax.default_matmul_precision("highest"):
            inside = self.before(jnp.eye(self.shape[0]))
            return self.after(inside @ base.astype(wide(base.dtype))).astype(base.dtype)

    def merged_bias(self):
        below = super().merged_bias()
        return None if below is None else self._after_each(below)

    def changed_bias(self, bias):
        below = super().changed_bias(bias)
        return self._after_each(below) if self.whole else below

    def _after_each(self, vector: jax.Array) -> jax.Array:
        """`after` of a vector [out], or of each layer's own [L, out]."""
        if len(self.shape) == 2:
            return self.after(vector)
        return jax.lax.map(lambda layer: layer[0].after(layer[1]), (self, vector))
