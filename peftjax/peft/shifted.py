"""LoRA from a start that is not zero, beside a base that stays as it is.

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = ShiftedLoRA(base=W, a=[L, R, in], b=[L, R, out], start_a, start_b, scale=[L])

    y = x W + s (x Aᵀ) B - s (x A₀ᵀ) B₀

PiSSA and its kin start with factors that are a part of W, and subtract that part from W. Here W stays, and the part is subtracted beside
it: A₀ and B₀ are frozen copies of where A and B start, so that the start is the base within rounding, detaching gives the base bit for bit,
and one base serves all adapters. Both products are one of rank 2R, and so is the LoRA without a start that
`peftjax.peft.plain` makes of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import node
from peftjax.peft.delta import LowRank


@node(arrays=("base", "a", "b", "start_a", "start_b", "scale", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class ShiftedLoRA(LowRank):
    """The node. base: kernel [in, out]; a, start_a: [R, in]; b, start_b: [R, out]; scale: []; dropout: rate [] or None; all with a
    leading L outside the scanned body."""

    base: Any
    a: jax.Array
    b: jax.Array
    start_a: jax.Array
    start_b: jax.Array
    scale: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("a", "b")
    matrices = ("a", "b")
    fast = ("b",)
    kept = ("start_a", "start_b")
    ranked = ("a", "b", "start_a", "start_b")

    def rows(self) -> tuple[jax.Array, jax.Array]:
        """([A; A₀] [2R, in], [B; -B₀] [2R, out]), of which the change is s times the product."""
        return jnp.concatenate([self.a, self.start_a], axis=-2), jnp.concatenate([self.b, -self.start_b], axis=-2)
