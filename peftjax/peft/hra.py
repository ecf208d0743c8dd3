"""HRA: the input of a weight goes through a chain of Householder reflections (2405.17484, 2024).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = HRA(base=W, u=[L, R, in])

    y = (x H_R ... H_1) W,  H_i = I - 2 v_iᵀ v_i,      v_i = u_i / |u_i|

The chain is never multiplied out: H_1 ... H_R = I - Vᵀ T V with T⁻¹ = ½ I + the part of V Vᵀ above its diagonal, so that it takes two thin
products and a triangular solve of R equations. With an even rank the u start in equal pairs, whose reflections cancel up to rounding; an
odd rank starts off the base. With `gram_schmidt` the v are made orthogonal first, and the whole is one reflection I - 2 Vᵀ V: pairs would
be degenerate there, so they start apart and the start is not the base.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import node
from peftjax.nn.thin import expand, shrink
from peftjax.peft.blocks import orthonormal
from peftjax.peft.bounds import require_positive
from peftjax.peft.delta import wrap
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target
from peftjax.peft.transform import Transform


@node(arrays=("base", "u"), static=("gram_schmidt", "name"))
@dataclasses.dataclass(frozen=True)
class HRA(Transform):
    """The node. base: kernel [in, out]; u: [R, in]."""

    base: Any
    u: jax.Array
    gram_schmidt: bool
    name: str

    trainable = ("u",)
    matrices = ("u",)

    def before(self, x):
        u = self.u.astype(jnp.float32)
        if self.gram_schmidt:
            v = orthonormal(u)
            return x - expand(2 * shrink(x, v), v)
        v = u / jnp.broadcast_to(jnp.linalg.norm(u, axis=-1, keepdims=True), u.shape)
        # x Vᵀ Tᵀ V, with Tᵀ V from the triangular equations (½ I + upper)ᵀ Z = V
        inverse = 0.5 * jnp.eye(v.shape[0]) + jnp.triu(jnp.matmul(v, v.T, precision="highest"), 1)
        return x - expand(shrink(x, v), jax.lax.linalg.triangular_solve(inverse, v, left_side=True, lower=False, transpose_a=True))

    def off(self):
        if self.gram_schmidt or self.u.shape[-2] % 2:
            raise TypeError("an odd number of reflections, or orthogonal ones, cannot cancel: this HRA changes something at any values")
        return dataclasses.replace(self, u=jnp.repeat(self.u[..., 0::2, :], 2, axis=-2))


@dataclasses.dataclass(frozen=True)
class hra:  # noqa: N801 (configs read `hra(rank=8)`)
    """HRA on chosen kernels.

    Attributes:
        rank: R, the number of reflections.
        gram_schmidt: the directions are made orthogonal (HF PEFT's `apply_GS`).
        targets, layers, name: as of `peftjax.peft.lora`.
    """

    rank: int = 8
    gram_schmidt: bool = False
    targets: str | Sequence[str] = "all-linear"
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        require_positive("hra", rank=self.rank)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a node around every target.

        Raises:
            ValueError: a target or a layer that names nothing, or more orthogonal directions than there are inputs.
        """
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> HRA:
        rows = target.value.shape[-2]
        if self.gram_schmidt and self.rank > rows:
            raise ValueError(f"hra: {self.rank} orthogonal directions among the {rows} inputs of {target.path}")
        pairs = not self.gram_schmidt and self.rank % 2 == 0
        bound = (self.rank // 2 if pairs else self.rank) ** -0.5

        def random(key):
            u = jax.random.uniform(key, (self.rank // 2 if pairs else self.rank, rows), minval=-bound, maxval=bound)
            return jnp.repeat(u, 2, axis=0) if pairs else u

        return HRA(target.value, draw("u", random), self.gram_schmidt, self.name)
