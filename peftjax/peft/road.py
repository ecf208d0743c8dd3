"""RoAd: pairs of outputs are rotated and scaled (2409.00119, 2024).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = RoAd(base=W, theta=[L, K], alpha=[L, K])

    y = first ⊙ h + second ⊙ turn(h),      h = x W + bias,      turn = (-h₂, h₁) of the two halves of each group of outputs

first = alpha cos(theta) and second = alpha sin(theta), with K = out/2 values, for each pair (`variant` 1), out, for each output (2), or
2 out, of which each group's first half is for `first` and the other one for `second` (4). All products are element-wise.
theta 0 and alpha 1 are the base exactly.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import node
from peftjax.peft.delta import wrap
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target
from peftjax.peft.transform import Transform

VARIANTS = (1, 2, 4)


@node(arrays=("base", "theta", "alpha"), static=("variant", "group", "name"))
@dataclasses.dataclass(frozen=True)
class RoAd(Transform):
    """The node. base: kernel [in, out]; theta (radians), alpha: [out/2], [out] or [2 out] by `variant`; group: outputs of a group."""

    base: Any
    theta: jax.Array
    alpha: jax.Array
    variant: int
    group: int
    name: str

    trainable = ("theta", "alpha")
    whole = True

    def after(self, y):
        first, second = self._columns()
        halves = y.reshape(*y.shape[:-1], -1, 2, self.group // 2)
        turned = jnp.stack([-halves[..., 1, :], halves[..., 0, :]], axis=-2).reshape(y.shape)
        return y * jnp.broadcast_to(first.astype(y.dtype), y.shape) + turned * jnp.broadcast_to(second.astype(y.dtype), y.shape)

    def off(self):
        return dataclasses.replace(self, theta=jnp.zeros_like(self.theta), alpha=jnp.ones_like(self.alpha))

    def _columns(self) -> tuple[jax.Array, jax.Array]:
        """(first, second), [out] each."""
        if self.variant == 4:
            theta, alpha = (value.reshape(-1, 2, self.group) for value in (self.theta, self.alpha))
            return (alpha[:, 0] * jnp.cos(theta[:, 0])).reshape(-1), (alpha[:, 1] * jnp.sin(theta[:, 1])).reshape(-1)
        first, second = self.alpha * jnp.cos(self.theta), self.alpha * jnp.sin(self.theta)
        if self.variant == 1:
            first, second = (jnp.repeat(value.reshape(-1, self.group // 2), 2, axis=0).reshape(-1) for value in (first, second))
        return first, second


@dataclasses.dataclass(frozen=True)
class road:  # noqa: N801 (configs read `road(variant=1)`)
    """RoAd on chosen kernels.

    Attributes:
        variant: 1, 2 or 4, how many numbers a pair of outputs has of its own.
        group: outputs of a group, in which the first half pairs with the second; even, and a divisor of each target's output width.
        targets, layers, name: as of `peftjax.peft.lora`.
    """

    variant: int = 1
    group: int = 64
    targets: str | Sequence[str] = "all-linear"
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise ValueError(f"road variant {self.variant!r} is none of {', '.join(map(str, VARIANTS))}")
        if self.group < 2 or self.group % 2:
            raise ValueError(f"road group {self.group} is no positive even number")

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a node around every target.

        Raises:
            ValueError: a target or a layer that names nothing, or a width that the groups do not divide.
        """
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> RoAd:
        width = target.value.shape[-1]
        if width % self.group:
            near = min((d for d in range(2, width + 1, 2) if width % d == 0), key=lambda d: abs(d - self.group), default=None)
            raise ValueError(
                f"road group {self.group} does not divide the {width} outputs of {target.path}; the nearest that does is {near}"
            )
        count = {1: width // 2, 2: width, 4: 2 * width}[self.variant]
        return RoAd(target.value, draw.full(0, count), draw.full(1, count), self.variant, self.group, self.name)
