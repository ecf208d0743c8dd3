"""LoRA with a gate for each token, the part of LoRA in UniPELT (2110.07577, 2021).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = GatedLoRA(base=W, a=[L, R, in], b=[L, R, out], gate=[L, in], gate_bias=[L], scale=[L])

    y = x W + sigmoid(x g + c) · scale · (x Aᵀ) B

The gate depends on the token, so that there is no weight to merge into. The paper, and AdapterHub, gate a whole row by the mean over its
tokens, `gate="row"` here: a kernel sees no segments, so that padding and other texts of the row count, and a token's product depends on
later ones. It is there to hold what was trained so, and for encoders. As there, the gate takes the place of alpha / rank: `scale` is 1
unless `alpha` is given.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Wrapping, node
from peftjax.peft import low_rank
from peftjax.peft.bounds import require_positive, require_rate
from peftjax.peft.delta import wrap
from peftjax.peft.dropout import drop
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target

GATES = ("token", "row")


@node(arrays=("base", "a", "b", "gate", "gate_bias", "scale", "dropout"), static=("gating", "name"))
@dataclasses.dataclass(frozen=True)
class GatedLoRA(Wrapping):
    """The node. base: kernel [in, out]; a: [R, in]; b: [R, out]; gate: [in]; gate_bias, scale: []; dropout: rate [] or None; gating: one
    of GATES."""

    base: Any
    a: jax.Array
    b: jax.Array
    gate: jax.Array
    gate_bias: jax.Array
    scale: jax.Array
    dropout: jax.Array | None
    gating: str
    name: str

    trainable = ("a", "b", "gate", "gate_bias")
    matrices = ("a", "b")
    fast = ("b",)

    def around(self, x, product, key=None):
        y = product(x)
        gates = jax.nn.sigmoid(x.astype(jnp.float32) @ self.gate + self.gate_bias)
        gates = gates.mean(axis=-1, keepdims=True) if self.gating == "row" else gates
        gates = gates.astype(x.dtype)[..., None]
        return y + jnp.broadcast_to(gates, y.shape) * low_rank.times(drop(x, self.dropout, key, self.name), self.a, self.b, self.scale)

    def off(self):
        return dataclasses.replace(self, scale=jnp.zeros_like(self.scale))

    def merge(self):
        raise TypeError("a gate depends on the token: a gated LoRA has no dense weight")


@dataclasses.dataclass(frozen=True)
class gated_lora:  # noqa: N801 (configs read `gated_lora(rank=8)`)
    """Gated LoRA on chosen linear kernels.

    Attributes:
        rank: R.
        alpha: scale = alpha / rank. None is a scale of 1.
        dropout: rate on the input of A, at training time.
        gate: "token", or "row", the mean over a row's tokens; see the module.
        targets, layers, name: as of `peftjax.peft.lora`.
    """

    rank: int = 8
    alpha: float | None = None
    targets: str | Sequence[str] = ("q_proj", "v_proj")
    dropout: float = 0.0
    gate: str = "token"
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        if self.gate not in GATES:
            raise ValueError(f"gated_lora gate {self.gate!r} is none of {', '.join(GATES)}")
        require_positive("gated_lora", rank=self.rank)
        require_rate("gated_lora", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a node around every target; B is zero, so that the start is the base exactly.

        Raises:
            ValueError: a target or a layer that names nothing.
        """
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> GatedLoRA:
        rows, width = target.value.shape[-2:]
        a = draw("a", lambda rng: jax.random.uniform(rng, (self.rank, rows), minval=-(rows**-0.5), maxval=rows**-0.5))
        gate = draw("gate", lambda rng: 0.02 * jax.random.normal(rng, (rows,)))
        scale = draw.full(1 if self.alpha is None else self.alpha / self.rank)
        return GatedLoRA(
            target.value, a, draw.full(0, self.rank, width), gate, draw.full(0), scale, draw.rate(self.dropout), self.gate, self.name
        )  # fmt: skip
