"""GraLoRA: a grid of small LoRAs, one for each block of inputs and block of outputs (2505.20355, 2025).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = GraLoRA(base=W, a=[L, K, R, in / K], b=[L, K, R, out / K], scale=[L])

    ΔW[block n of inputs, block j of outputs] = scale · A_n[rows of j]ᵀ B_j[rows of n],      scale = alpha / (rank + hybrid_rank)

The R rows of A_n are K groups, one for each block of outputs; those of B_j one for each block of inputs: each LoRA of the grid has rank
R / K, and together they train what one LoRA of rank R does. With `hybrid_rank` a plain LoRA stands beside the grid. B starts at zero: the
start is the base exactly. In HF PEFT: a is `gralora_A` with its last two axes exchanged, b is `gralora_B`, general_a is
`gralora_A_general.weight`, general_b is `gralora_B_general.weight` transposed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import node
from peftjax.peft import low_rank
from peftjax.peft.bounds import require_positive, require_rate
from peftjax.peft.delta import Delta, wrap
from peftjax.peft.keys import Draw, kaiming
from peftjax.peft.select import Target


@node(arrays=("base", "a", "b", "general_a", "general_b", "scale", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class GraLoRA(Delta):
    """The node. base: kernel [in, out]; a: [K, R, in / K]; b: [K, R, out / K]; general_a: [H, in] and general_b: [H, out], or None; scale:
    []; dropout: rate [] or None; all with a leading L outside the scanned body."""

    base: Any
    a: jax.Array
    b: jax.Array
    general_a: jax.Array | None
    general_b: jax.Array | None
    scale: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("a", "b", "general_a", "general_b")
    matrices = ("a", "b", "general_a", "general_b")
    fast = ("b", "general_b")

    def delta(self):
        a, b = self._grid()
        grid = jnp.einsum("...njsi,...jnso->...nijo", a * self.scale[..., None, None, None, None], b).reshape(self.shape)
        return grid if self.general_a is None else grid + low_rank.whole(self.general_a, self.general_b, self.scale)

    def factors(self):
        """Of K R rows, each zero but for one block of inputs and one of outputs; None where this is no saving."""
        (blocks, rank), (rows, width) = self.a.shape[-3:-1], self.shape[-2:]
        if blocks * rank * (rows + width) > rows * width:
            return None
        (a, b), which = self._grid(), jnp.eye(blocks)
        a = jnp.einsum("...njsi,nm->...njsmi", a, which).reshape(*a.shape[:-4], blocks * rank, rows)
        b = jnp.einsum("...jnso,jm->...njsmo", b, which).reshape(*b.shape[:-4], blocks * rank, width)
        if self.general_a is not None:
            a, b = jnp.concatenate([a, self.general_a], axis=-2), jnp.concatenate([b, self.general_b], axis=-2)
        return a, b * self.scale[..., None, None]

    def _grid(self):
        """a [..., n, j, R / K, in / K] and b [..., j, n, R / K, out / K] of the LoRAs between block n of inputs and block j of outputs."""
        return tuple(value.reshape(*value.shape[:-2], value.shape[-3], -1, value.shape[-1]) for value in (self.a, self.b))

    def change(self, x):
        blocks, rank = self.a.shape[:2]
        thin = jnp.einsum("...ni,nri->...nr", x.reshape(*x.shape[:-1], blocks, -1), self.a.astype(x.dtype))
        thin = jnp.swapaxes(thin.reshape(*x.shape[:-1], blocks, blocks, -1), -3, -2).reshape(*x.shape[:-1], blocks, rank)
        y = jnp.einsum("...jr,jro->...jo", thin * self.scale.astype(x.dtype), self.b.astype(x.dtype)).reshape(*x.shape[:-1], -1)
        return y if self.general_a is None else y + low_rank.times(x, self.general_a, self.general_b, self.scale)


@dataclasses.dataclass(frozen=True)
class gralora:  # noqa: N801 (configs read `gralora(rank=32)`)
    """GraLoRA on chosen linear kernels.

    Attributes:
        rank: R, over all blocks; a multiple of `blocks`.
        hybrid_rank: of the plain LoRA beside the grid; 0 for none.
        alpha: scale = alpha / (rank + hybrid_rank).
        blocks: K, on each side of the grid; it divides both sides of every target.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        dropout: rate on the input, at training time.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    rank: int = 32
    hybrid_rank: int = 0
    alpha: float = 64
    blocks: int = 2
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        require_positive("GraLoRA", rank=self.rank, blocks=self.blocks)
        require_rate("GraLoRA", self.dropout)
        if self.rank % self.blocks:
            raise ValueError(f"GraLoRA shares rank {self.rank} out over {self.blocks} blocks, which do not divide it")
        if self.hybrid_rank < 0:
            raise ValueError(f"GraLoRA hybrid_rank {self.hybrid_rank} is negative")

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a GraLoRA node around every target.

        Raises:
            ValueError: a target or a layer that names nothing; a kernel that does not divide into such blocks.
        """
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> GraLoRA:
        (rows, width), blocks, hybrid = target.value.shape[-2:], self.blocks, self.hybrid_rank
        if rows % blocks or width % blocks:
            raise ValueError(f"GraLoRA blocks {blocks} do not divide both sides of {target.path}, which is {rows} x {width}")
        return GraLoRA(
            target.value,
            draw("a", kaiming(rows // blocks, blocks, self.rank, rows // blocks)),
            draw.full(0.0, blocks, self.rank, width // blocks),
            draw("general_a", kaiming(rows, hybrid, rows)) if hybrid else None,
            draw.full(0.0, hybrid, width) if hybrid else None,
            draw.full(self.alpha / (self.rank + hybrid)), draw.rate(self.dropout), self.name,
        )  # fmt: skip
