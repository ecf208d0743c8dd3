"""BOFT: the input of a weight is rotated by a product of butterfly factors, and its output is scaled (2311.06243, 2023).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = BOFT(base=W, rotation=[L, M, N, C, C], scale=[L, out])

    y = ((x B_M ... B_1) W) ⊙ s + bias,      B_i = P_i diag(cayley(½(X - Xᵀ)) ...) P_iᵀ        M factors of N blocks of size C

Factor i mixes inputs that lie further apart the larger i is: within each group of C 2^i inputs, P_i brings the even half-blocks to the
front. Zero matrices and scales of one are the base exactly. HF PEFT without its CUDA extension computes with one factor whatever the
config says.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.nn.kernels import node
from peftjax.peft.blocks import cayley, in_blocks
from peftjax.peft.delta import wrap
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target
from peftjax.peft.transform import Transform


@node(arrays=("base", "rotation", "scale"), static=("name",))
@dataclasses.dataclass(frozen=True)
class BOFT(Transform):
    """The node. base: kernel [in, out]; rotation: [M, N, C, C], any matrices X; scale: [out]."""

    base: Any
    rotation: jax.Array
    scale: jax.Array
    name: str

    trainable = ("rotation", "scale")
    matrices = ("rotation",)

    def before(self, x):
        free = self.rotation.astype(jnp.float32)
        factors = cayley(0.5 * (free - jnp.swapaxes(free, -1, -2)))
        for number in range(factors.shape[0] - 1, -1, -1):
            order = _order(x.shape[-1], free.shape[-1], number)
            x = jnp.take(in_blocks(jnp.take(x, np.argsort(order), axis=-1), factors[number]), order, axis=-1)
        return x

    def after(self, y):
        return y * jnp.broadcast_to(self.scale.astype(y.dtype), y.shape)

    def off(self):
        return dataclasses.replace(self, rotation=jnp.zeros_like(self.rotation), scale=jnp.ones_like(self.scale))


def _order(width: int, size: int, number: int) -> np.ndarray:
    """Which input stands where in factor `number`: in each group the even half-blocks, then the odd ones."""
    if number == 0:
        return np.arange(width)
    halves = np.arange(width).reshape(-1, 2**number, 2, size // 2)  # group, pair, even or odd, within
    return np.swapaxes(halves, 1, 2).reshape(-1)


@dataclasses.dataclass(frozen=True)
class boft:  # noqa: N801 (configs read `boft(block_size=4)`)
    """BOFT on chosen kernels.

    Attributes:
        block_size: C. With several factors it is even.
        factors: M (HF PEFT's `boft_n_butterfly_factor`); C 2^(M-1) divides each target's input width.
        targets, layers, name: as of `peftjax.peft.lora`.
    """

    block_size: int = 4
    factors: int = 1
    targets: str | Sequence[str] = "all-linear"
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        if self.block_size < 2 or self.factors < 1 or (self.factors > 1 and self.block_size % 2):
            raise ValueError(
                f"boft block_size {self.block_size} with {self.factors} factors: at least 2 and 1, and an even size where there are several"
            )

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a node around every target.

        Raises:
            ValueError: a target or a layer that names nothing, or a width that the blocks do not divide.
        """
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> BOFT:
        rows, width = target.value.shape[-2:]
        group = self.block_size * 2 ** (self.factors - 1)
        if rows % group:
            raise ValueError(
                f"boft: block_size {self.block_size} and {self.factors} factors mix groups of {group} inputs, which do not divide the "
                f"{rows} of {target.path}"
            )
        rotation = draw.full(0, self.factors, rows // self.block_size, self.block_size, self.block_size)
        return BOFT(target.value, rotation, draw.full(1, width), self.name)
