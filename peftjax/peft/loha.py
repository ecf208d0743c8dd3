"""LoHa: the elementwise product of two low-rank products, of rank up to R² (FedPara, 2108.06098, 2021).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = LoHa(base=W, a1=[L, R, in], b1=[L, R, out], a2=[L, R, in], b2=[L, R, out], scale=[L])

    ΔW = scale · (A₁ᵀB₁) ⊙ (A₂ᵀB₂),      scale = alpha / rank

It is a low-rank product too, with the R² products of rows A₁ᵣ ⊙ A₂ₛ and B₁ᵣ ⊙ B₂ₛ for its factors; it is computed so where that is less
work than forming ΔW. A₂ starts at zero: the start is the base exactly. In HF PEFT: a1 is `hada_w1_b`, b1 is `hada_w1_a` transposed, a2 is
`hada_w2_b`, b2 is `hada_w2_a` transposed. Its dropouts of whole outputs and of modules are not here; `dropout` is on the input as LoRA's.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import node
from peftjax.peft.bounds import require_positive, require_rate
from peftjax.peft.delta import Delta, wrap
from peftjax.peft.keys import Draw, kaiming
from peftjax.peft.ranks import at_layers, leaf, own_rows
from peftjax.peft.select import Target


@node(arrays=("base", "a1", "b1", "a2", "b2", "scale", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class LoHa(Delta):
    """The node. base: kernel [in, out]; a1, a2: [R, in]; b1, b2: [R, out]; scale: []; dropout: rate [] or None; all with a leading L
    outside the scanned body."""

    base: Any
    a1: jax.Array
    b1: jax.Array
    a2: jax.Array
    b2: jax.Array
    scale: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("a1", "b1", "a2", "b2")
    matrices = ("a1", "b1", "a2", "b2")
    ranked = ("a1", "b1", "a2", "b2")

    def delta(self):
        one, two = (jnp.einsum("...ri,...ro->...io", a, b) for a, b in ((self.a1, self.b1), (self.a2, self.b2)))
        return self.scale[..., None, None] * one * two

    def factors(self):
        rank, (rows, width) = self.a1.shape[-2], self.shape[-2:]
        if rank * rank * (rows + width) > rows * width:
            return None
        return _pairs(self.a1, self.a2), _pairs(self.b1, self.b2) * self.scale[..., None, None]


def _pairs(one: jax.Array, two: jax.Array) -> jax.Array:
    """[..., R, n], [..., R, n] -> [..., R², n]: each row of one times each row of the other."""
    return jnp.einsum("...rn,...sn->...rsn", one, two).reshape(*one.shape[:-2], -1, one.shape[-1])


@dataclasses.dataclass(frozen=True)
class loha:  # noqa: N801 (configs read `loha(rank=8)`)
    """LoHa on chosen linear kernels.

    Attributes:
        rank: R, of each of the two products.
        alpha: scale = alpha / rank.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        dropout: rate on the input, at training time.
        rank_pattern, alpha_pattern: exceptions by target or by layer, as of `lora`.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    rank: int = 8
    alpha: float = 8
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        for rank in (self.rank, *self.rank_pattern.values()):
            require_positive("LoHa", rank=rank)
        require_rate("LoHa", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a LoHa node around every target.

        Raises:
            ValueError: a target, a pattern or a layer that names nothing.
        """
        patterns = {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}
        return wrap(params, key, self.targets, self.layers, self.name, self._node, **patterns)

    def _node(self, target: Target, draw: Draw) -> LoHa:
        ranks, alphas = at_layers(self.rank_pattern, target, self.rank), at_layers(self.alpha_pattern, target, self.alpha)
        top, (rows, width) = max(ranks), target.value.shape[-2:]
        a1, b1, b2 = (
            own_rows(draw(field, init), ranks)
            for field, init in (
                ("a1", kaiming(rows, top, rows)), ("b1", kaiming(top, top, width)), ("b2", kaiming(top, top, width))
            )
        )  # fmt: skip
        scale = leaf([alpha / rank for alpha, rank in zip(alphas, ranks, strict=True)], target)
        return LoHa(target.value, a1, b1, draw.full(0.0, top, rows), b2, scale, draw.rate(self.dropout), self.name)
