"""OFT: the input of a weight is rotated, block by block (2306.07280, 2023; on the input, 2506.19847, 2025).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = OFT(base=W, skew=[L, N, C(C-1)/2])

    y = (x R) W,  R = diag(R_1 ... R_N),      N blocks of size C

Each block comes from a skew-symmetric matrix Q, of which the entries above the diagonal are stored, row by row; Q = 0 is the identity.
The two parametrisations have opposite signs, as in HF PEFT, so that a stored adapter keeps the one that it was trained with:

    exact                (I - Q)(I + Q)⁻¹                   orthogonal whatever Q is (Cayley)
    Neumann, 5 terms     I + 2Q + 2Q² + 2Q³ + Q⁴            close to (I + Q)(I - Q)⁻¹ while Q is small, and no inverse

The constraint of COFT keeps each block's ||Q|| within eps / sqrt(N). Gradients pass it as if it were not there; the stored Q is not cut
back, only what is computed with it. (HF PEFT overwrites Q in each forward pass. Its `module_dropout` has no effect there and is not here.)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.nn.kernels import node
from peftjax.nn.wide import wide
from peftjax.peft.blocks import cayley, in_blocks
from peftjax.peft.delta import wrap
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target
from peftjax.peft.transform import Transform


@node(arrays=("base", "skew", "eps"), static=("size", "terms", "name"))
@dataclasses.dataclass(frozen=True)
class OFT(Transform):
    """The node. base: kernel [in, out]; skew: [N, C(C-1)/2], or [1, ...] for one block in all places; eps: [] or None; size: C; terms: of
    the Neumann series, or None for the exact form."""

    base: Any
    skew: jax.Array
    eps: jax.Array | None
    size: int
    terms: int | None
    name: str

    trainable = ("skew",)
    matrices = ("skew",)

    def before(self, x):
        return in_blocks(x, self.rotation())

    def rotation(self) -> jax.Array:
        """The blocks R [N, C, C] float32, or the one [1, C, C] that all places share."""
        rows, columns = np.triu_indices(self.size, 1)
        upper = jnp.zeros((self.skew.shape[0], self.size, self.size)).at[:, rows, columns].set(self._bounded())
        q = upper - jnp.swapaxes(upper, -1, -2)
        return cayley(q) if self.terms is None else _neumann(q, self.terms)

    def off(self):
        return dataclasses.replace(self, skew=jnp.zeros_like(self.skew))

    def _bounded(self):
        skew = self.skew.astype(wide(self.skew.dtype))
        if self.eps is None:
            return skew
        norm = jnp.sqrt(2 * jnp.sum(jnp.square(skew), axis=-1, keepdims=True))  # of Q, which holds each entry twice
        most = self.eps / skew.shape[0] ** 0.5
        bounded = skew * jnp.broadcast_to(jnp.where(norm <= most, 1.0, most / jnp.where(norm > 0, norm, 1.0)), skew.shape)
        return skew + jax.lax.stop_gradient(bounded - skew)


def _neumann(q: jax.Array, terms: int) -> jax.Array:
    """I + 2Q + ... + 2Q^(terms-2) + Q^(terms-1): q [N, C, C] -> [N, C, C]. Two terms are I + 2Q, and three are four, as in HF PEFT."""
    last, total = 1 if terms == 2 else max(terms - 1, 3), jnp.broadcast_to(jnp.eye(q.shape[-1]), q.shape) + 2.0 * q
    power = q
    for number in range(2, last + 1):
        power = power @ q
        total = total + (1.0 if number == last else 2.0) * power
    return total


@dataclasses.dataclass(frozen=True)
class oft:  # noqa: N801 (configs read `oft(block_size=32)`)
    """OFT on chosen kernels.

    Attributes:
        block_size: C, a divisor of each target's input width.
        blocks: N, in the place of `block_size` (HF PEFT's `r`).
        exact: the exact parametrisation instead of the Neumann series.
        terms: of the series.
        coft: keeps the rotations small.
        eps: how small, with `coft`.
        block_share: one block for all places of a kernel.
        targets, layers, name: as of `peftjax.peft.lora`.
    """

    block_size: int | None = 32
    blocks: int | None = None
    exact: bool = False
    terms: int = 5
    coft: bool = False
    eps: float = 6e-5
    block_share: bool = False
    targets: str | Sequence[str] = "all-linear"
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        if self.blocks is not None and self.block_size == 32:
            object.__setattr__(self, "block_size", None)  # the default gives way
        if (self.blocks is None) == (self.block_size is None) or (self.blocks or self.block_size) < 1:
            raise ValueError(f"oft wants block_size or blocks, one of them and positive; found {self.block_size} and {self.blocks}")
        if self.terms < 2:
            raise ValueError(f"oft terms {self.terms}: with less than two the rotation does not depend on what is trained")

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a node around every target.

        Raises:
            ValueError: a target or a layer that names nothing, or a width that the blocks do not divide.
        """
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> OFT:
        width, asked = target.value.shape[-2], self.blocks or self.block_size
        if width % asked:
            near = min((d for d in range(1, width + 1) if width % d == 0), key=lambda d: abs(d - asked))
            what = "block_size" if self.blocks is None else "blocks"
            raise ValueError(f"oft {what} {asked} does not divide the {width} inputs of {target.path}; the nearest that does is {near}")
        size = width // self.blocks if self.blocks else self.block_size
        if size < 2:
            raise ValueError(f"oft blocks of size {size} at {target.path} cannot turn; a block holds at least two inputs")
        skew = draw.full(0, 1 if self.block_share else width // size, size * (size - 1) // 2)
        eps = draw.full(self.eps) if self.coft else None
        return OFT(target.value, skew, eps, size, None if self.exact else self.terms, self.name)
