"""HiRA: the weight times a low-rank product, elementwise, so that the update is of full rank (ICLR 2025, OpenReview TwJrTz9cRS).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = HiRA(base=W, a=[L, R, in], b=[L, R, out])

    ΔW = W ⊙ (AᵀB)

W is the weight under all adapters. B starts at zero: the start is the base exactly. There is no alpha. In HF PEFT: a is `hira_A`, b is
`hira_B` transposed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import dense, node
from peftjax.peft.bounds import require_known, require_positive, require_rate
from peftjax.peft.delta import Delta, weight_under, wrap
from peftjax.peft.keys import Draw, kaiming
from peftjax.peft.ranks import at_layers, own_rows
from peftjax.peft.select import Target

INITS = ("kaiming", "gaussian")


@node(arrays=("base", "a", "b", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class HiRA(Delta):
    """The node. base: kernel [in, out]; a: [R, in]; b: [R, out]; dropout: rate [] or None; with a leading L outside the scanned body."""

    base: Any
    a: jax.Array
    b: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("a", "b")
    matrices = ("a", "b")
    fast = ("b",)
    ranked = ("a", "b")

    def delta(self):
        return dense(weight_under(self.base)).astype(jnp.float32) * jnp.einsum("...ri,...ro->...io", self.a, self.b)


@dataclasses.dataclass(frozen=True)
class hira:  # noqa: N801 (configs read `hira(rank=32)`)
    """HiRA on chosen linear kernels.

    Attributes:
        rank: R.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        dropout: rate on the input, at training time.
        init: of A: "kaiming" is U(-1/sqrt(in), 1/sqrt(in)), "gaussian" is normal with std 1/rank.
        rank_pattern: exceptions by target or by layer, as of `lora`.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    rank: int = 32
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    init: str = "kaiming"
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        for rank in (self.rank, *self.rank_pattern.values()):
            require_positive("HiRA", rank=rank)
        require_known("HiRA", "init", self.init, INITS)
        require_rate("HiRA", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a HiRA node around every target.

        Raises:
            ValueError: a target, a pattern or a layer that names nothing.
        """
        return wrap(params, key, self.targets, self.layers, self.name, self._node, rank_pattern=self.rank_pattern)

    def _node(self, target: Target, draw: Draw) -> HiRA:
        ranks, (rows, width) = at_layers(self.rank_pattern, target, self.rank), target.value.shape[-2:]
        top = max(ranks)
        init = kaiming(rows, top, rows) if self.init == "kaiming" else lambda key: jax.random.normal(key, (top, rows)) / top
        return HiRA(target.value, own_rows(draw("a", init), ranks), draw.full(0.0, top, width), draw.rate(self.dropout), self.name)
