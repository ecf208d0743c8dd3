"""DeLoRA: a low-rank update whose strength is apart from its directions (2503.18225, 2025).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = DeLoRA(base=W, a=[L, R, in], b=[L, R, out], strength=[L], lengths=[L, in], scale=[L])

    ΔW_i = ‖W_i‖ · (λ / R) Σ_r A_ri B_r / (‖A_r‖ ‖B_r‖)

The update's Frobenius norm is bounded by λ, the trained `strength`, in units of the weight's rows, whose lengths at the time of attaching
are the frozen leaf `lengths` (of the weight under all adapters). Lengths of A's and B's rows are held above 1e-4. B starts at zero: the
start is the base exactly. scale = 1 / R. In HF PEFT: a is `delora_A`, b is `delora_B` transposed, strength is `delora_lambda` [1], lengths
is `delora_w_norm`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import dense, node
from peftjax.peft.bounds import require_positive, require_rate
from peftjax.peft.delta import Delta, weight_under, wrap
from peftjax.peft.keys import Draw, kaiming
from peftjax.peft.ranks import at_layers, leaf, own_rows
from peftjax.peft.select import Target

SHORTEST = 1e-4


@node(arrays=("base", "a", "b", "strength", "lengths", "scale", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class DeLoRA(Delta):
    """The node. base: kernel [in, out]; a: [R, in]; b: [R, out]; strength: []; lengths: [in]; scale: [], one over the layer's rank;
    dropout: rate [] or None; all with a leading L outside the scanned body."""

    base: Any
    a: jax.Array
    b: jax.Array
    strength: jax.Array
    lengths: jax.Array
    scale: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("a", "b", "strength")
    matrices = ("a", "b")
    ranked = ("a", "b")

    def factors(self):
        size = (self.strength * self.scale)[..., None] / (_row_lengths(self.a) * _row_lengths(self.b))
        return self.a * self.lengths[..., None, :], self.b * size[..., None]


def _row_lengths(value: jax.Array) -> jax.Array:
    """[..., R, n] -> [..., R]; the square is what is held up, since a root has no slope at zero."""
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(value), axis=-1), SHORTEST**2))


@jax.jit
def _lengths(weight: Any) -> jax.Array:
    """‖W_i‖ of a weight [..., in, out] -> [..., in] float32; of a stack one layer after the other, so that one at a time is dense."""
    if len(weight.shape) > 2:
        return jax.lax.map(_lengths, weight)
    return jnp.linalg.norm(dense(weight).astype(jnp.float32), axis=-1)


@dataclasses.dataclass(frozen=True)
class delora:  # noqa: N801 (configs read `delora(rank=8)`)
    """DeLoRA on chosen linear kernels.

    Attributes:
        rank: R.
        strength: what λ starts from.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        dropout: rate on the input, at training time.
        rank_pattern, strength_pattern: exceptions by target or by layer, as of `lora`.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    rank: int = 8
    strength: float = 15
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    strength_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        for rank in (self.rank, *self.rank_pattern.values()):
            require_positive("DeLoRA", rank=rank)
        require_rate("DeLoRA", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a DeLoRA node around every target.

        Raises:
            ValueError: a target, a pattern or a layer that names nothing.
        """
        patterns = {"rank_pattern": self.rank_pattern, "strength_pattern": self.strength_pattern}
        return wrap(params, key, self.targets, self.layers, self.name, self._node, **patterns)

    def _node(self, target: Target, draw: Draw) -> DeLoRA:
        ranks, (rows, width) = at_layers(self.rank_pattern, target, self.rank), target.value.shape[-2:]
        return DeLoRA(
            target.value, own_rows(draw("a", kaiming(rows, max(ranks), rows)), ranks), draw.full(0.0, max(ranks), width),
            leaf(at_layers(self.strength_pattern, target, self.strength), target), _lengths(weight_under(target.value)),
            leaf([1 / rank for rank in ranks], target), draw.rate(self.dropout), self.name,
        )
