"""MiSS: one small matrix that every block of the input goes through (2409.15371, 2024; first published as Bone).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = MiSS(base=W, block=[L, R, out])             or, as "bat", MiSSBat(base=W, block=[L, out / R, R, R])

    y = x W + (Σ over blocks of R inputs: x_block) D,    ΔW_io = D_(i mod R)o

"mini" trains [R, mini_rank] and repeats it along the output. "bat" lets the weight in: in blocks of R x R, ΔW = W·Dₙ + Dₙ with one Dₙ for
the R outputs of block n, where W is the weight under all adapters. D starts at zero: the start is the base exactly. There is no alpha. In
HF PEFT block is `miss_block`, as it is, in all three forms.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import dense, dot, node
from peftjax.peft.bounds import require_known, require_positive, require_rate
from peftjax.peft.delta import Delta, weight_under, wrap
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target

FORMS = ("default", "mini", "bat")


@node(arrays=("base", "block", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class MiSS(Delta):
    """The node. base: kernel [in, out]; block D: [R, out], or [R, a divisor of out], which is repeated; dropout: rate [] or None; all with
    a leading L outside the scanned body."""

    base: Any
    block: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("block",)
    matrices = ("block",)

    def delta(self):
        rows, width = self.shape[-2:]
        rank, own = self.block.shape[-2:]
        return jnp.tile(jnp.take(self.block, jnp.arange(rows) % rank, axis=-2), width // own)

    def factors(self):
        rows, width = self.shape[-2:]
        rank, own = self.block.shape[-2:]
        where = jax.nn.one_hot(jnp.arange(rows) % rank, rank, axis=0)
        return jnp.broadcast_to(where, (*self.block.shape[:-2], rank, rows)), jnp.tile(self.block, width // own)

    def change(self, x):
        rows, width = self.shape
        rank, own = self.block.shape
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -rows % rank)])
        folded = jnp.sum(padded.reshape(*x.shape[:-1], -1, rank), axis=-2)
        return jnp.tile(dot(folded, self.block), width // own)


@node(arrays=("base", "block", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class MiSSBat(Delta):
    """The node of "bat". base: kernel [in, out]; block: [out / R, R, R], of each block of outputs; dropout: rate [] or None; all with
    a leading L outside the scanned body."""

    base: Any
    block: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("block",)
    matrices = ("block",)

    def delta(self):
        weight = dense(weight_under(self.base)).astype(jnp.float32)
        rank, (*stack, rows, width) = self.block.shape[-1], weight.shape
        weight = weight.reshape(*stack, rows // rank, rank, width // rank, rank)
        through = jnp.einsum("...mbna,...nbc->...mcna", weight, self.block)
        return (through + jnp.einsum("...nac->...cna", self.block)[..., None, :, :, :]).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class miss:  # noqa: N801 (configs read `miss(rank=64)`)
    """MiSS on chosen linear kernels.

    Attributes:
        rank: R, inputs to a block.
        form: "default", "mini" or "bat", see above.
        mini_rank: outputs that "mini" trains; it divides the width of every target.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        dropout: rate on the input, at training time.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    rank: int = 64
    form: str = "default"
    mini_rank: int = 1
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        require_positive("MiSS", rank=self.rank, mini_rank=self.mini_rank)
        require_known("MiSS", "form", self.form, FORMS)
        require_rate("MiSS", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a MiSS node around every target.

        Raises:
            ValueError: a target or a layer that names nothing; a kernel that does not divide into such blocks.
        """
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> MiSS | MiSSBat:
        rank, (rows, width) = self.rank, target.value.shape[-2:]
        if rank > rows:
            raise ValueError(f"MiSS rank {rank} is more than the {rows} inputs of {target.path}")
        if self.form == "bat" and (rows % rank or width % rank):
            raise ValueError(f"MiSS form 'bat' needs blocks of {rank} x {rank}; {target.path} is {rows} x {width}")
        if self.form == "mini" and width % self.mini_rank:
            raise ValueError(f"MiSS mini_rank {self.mini_rank} does not divide the {width} outputs of {target.path}")
        kind = MiSSBat if self.form == "bat" else MiSS
        shape = {"default": (rank, width), "mini": (rank, self.mini_rank), "bat": (width // rank, rank, rank)}[self.form]
        return kind(target.value, draw.full(0.0, *shape), draw.rate(self.dropout), self.name)
