"""LoKr: a Kronecker product of a small matrix and a larger one, each dense or of low rank (2309.14859, 2023).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = LoKr(base=W, w1=[L, in1, out1], a2=[L, R, in2], b2=[L, R, out2], scale=[L])     in = in1 · in2, ...

    ΔW = scale · w₁ ⊗ w₂,      scale = alpha / rank, of dense factors too, as in HF PEFT

w₂ is a product a₂ᵀb₂ of rank R where R is under half of its longer side, else dense; so is w₁, but only with `decompose_both`. The input is
taken as [in1, in2], multiplied by w₂ along one axis and by w₁ along the other: ΔW is never formed. One factor starts at zero: the start is
the base exactly. In HF PEFT: w1, w2 are `lokr_w1`, `lokr_w2` transposed, a1, a2 are `lokr_w1_b`, `lokr_w2_b`, b1, b2 are `lokr_w1_a`,
`lokr_w2_a` transposed. Its dropouts of whole outputs and of modules are not here; `dropout` is on the input as LoRA's.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import dot, node
from peftjax.nn.thin import expand, shrink
from peftjax.peft.bounds import require_known, require_positive, require_rate
from peftjax.peft.delta import Delta, wrap
from peftjax.peft.keys import Draw, kaiming
from peftjax.peft.ranks import at_layers, at_once, leaf
from peftjax.peft.select import Target

INITS = ("zero_first", "zero_second")


@node(arrays=("base", "w1", "a1", "b1", "w2", "a2", "b2", "scale", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class LoKr(Delta):
    """The node. base: kernel [in1 · in2, out1 · out2]; w1: [in1, out1], or None with a1: [R, in1] and b1: [R, out1]; w2, a2, b2 likewise;
    scale: []; dropout: rate [] or None; all with a leading L outside the scanned body."""

    base: Any
    w1: jax.Array | None
    a1: jax.Array | None
    b1: jax.Array | None
    w2: jax.Array | None
    a2: jax.Array | None
    b2: jax.Array | None
    scale: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("w1", "a1", "b1", "w2", "a2", "b2")
    matrices = ("w1", "a1", "b1", "w2", "a2", "b2")

    def delta(self):
        one, two = _factor(self.w1, self.a1, self.b1), _factor(self.w2, self.a2, self.b2)
        whole = jnp.einsum("...io,...jp->...ijop", one * self.scale[..., None, None], two)
        return whole.reshape(self.shape)

    def factors(self):
        if self.w2 is not None:
            return None
        a1, b1 = (self.a1, self.b1) if self.w1 is None else _trivial(self.w1)
        return _kron(a1, self.a2), _kron(b1, self.b2) * self.scale[..., None, None]

    def change(self, x):
        h = x.reshape(*x.shape[:-1], -1, self.a2.shape[1] if self.w2 is None else self.w2.shape[0])
        h = shrink(h, self.a2) if self.w2 is None else dot(h, self.w2)
        one = _factor(self.w1, self.a1, self.b1) * self.scale
        h = jnp.einsum("...ip,io->...op", h, one.astype(x.dtype))
        h = expand(h, self.b2) if self.w2 is None else h
        return h.reshape(*x.shape[:-1], -1)


def _factor(w: jax.Array | None, a: jax.Array | None, b: jax.Array | None) -> jax.Array:
    return jnp.einsum("...ri,...ro->...io", a, b) if w is None else w


def _trivial(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """w [..., n, m] as a product a [..., R, n], b [..., R, m] of rank R = min(n, m): itself and an identity."""
    rows, width = w.shape[-2:]
    one = jnp.broadcast_to(jnp.eye(min(rows, width)), (*w.shape[:-2], min(rows, width), min(rows, width)))
    return (one, w) if rows <= width else (jnp.swapaxes(w, -1, -2), one)


def _kron(one: jax.Array, two: jax.Array) -> jax.Array:
    """[..., R, n], [..., S, m] -> [..., R · S, n · m]."""
    rank, width = one.shape[-2] * two.shape[-2], one.shape[-1] * two.shape[-1]
    return jnp.einsum("...rn,...sm->...rsnm", one, two).reshape(*one.shape[:-2], rank, width)


def split(size: int, factor: int) -> tuple[int, int]:
    """`size` as a product of two, the first `factor` where that divides it, else the largest divisor up to `factor` that is not the larger
    of the two; a factor of -1 is no limit. split(576, -1) == (24, 24), split(1536, 8) == (8, 192), split(7, 3) == (1, 7)."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    small = max(divisor for divisor in range(1, limit + 1) if size % divisor == 0)
    return small, size // small


@dataclasses.dataclass(frozen=True)
class lokr:  # noqa: N801 (configs read `lokr(rank=8)`)
    """LoKr on chosen linear kernels.

    Attributes:
        rank: R, of what is not dense; it also divides alpha.
        alpha: scale = alpha / rank.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        decompose_both: w1 may be of low rank too.
        decompose_factor: size of w1's sides where it divides the kernel's; -1 is as near the square root as there is a divisor.
        init: "zero_first": w1 (or b1) is zero; "zero_second": w2 (or a2) is, as LyCORIS has it.
        dropout: rate on the input, at training time.
        rank_pattern, alpha_pattern: exceptions by target; by layer for alpha only.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    rank: int = 8
    alpha: float = 8
    targets: str | Sequence[str] = "all-linear"
    decompose_both: bool = False
    decompose_factor: int = -1
    init: str = "zero_first"
    dropout: float = 0.0
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        for rank in (self.rank, *self.rank_pattern.values()):
            require_positive("LoKr", rank=rank)
        require_known("LoKr", "init", self.init, INITS)
        require_rate("LoKr", self.dropout)
        if self.decompose_factor != -1 and self.decompose_factor < 1:
            raise ValueError(f"LoKr decompose_factor {self.decompose_factor} is neither positive nor -1")

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a LoKr node around every target.

        Raises:
            ValueError: a target, a pattern or a layer that names nothing; ranks that differ within a stack.
        """
        patterns = {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}
        return wrap(params, key, self.targets, self.layers, self.name, self._node, **patterns)

    def _node(self, target: Target, draw: Draw) -> LoKr:
        rank = at_once(self.rank_pattern, target, self.rank, "LoKr rank")
        sizes = [split(size, self.decompose_factor) for size in target.value.shape[-2:]]
        (in1, out1), (in2, out2) = zip(*sizes, strict=True)
        factors, zero_first = {}, self.init == "zero_first"
        for number, rows, width, zero in ((1, in1, out1, zero_first), (2, in2, out2, not zero_first)):
            w, a, b = f"w{number}", f"a{number}", f"b{number}"
            if rank < max(rows, width) / 2 and (number == 2 or self.decompose_both):
                nought = {1: b, 2: a}[number] if zero else None
                inits = {a: (kaiming(rows, rank, rows), rank, rows), b: (kaiming(rank, rank, width), rank, width)}
            else:
                nought = w if zero else None
                inits = {w: (kaiming(rows, rows, width), rows, width)}
            for field, (init, *shape) in inits.items():
                factors[field] = draw.full(0.0, *shape) if field == nought else draw(field, init)
        scale = leaf([alpha / rank for alpha in at_layers(self.alpha_pattern, target, self.alpha)], target)
        factors = {field: factors.get(field) for field in LoKr.trainable}
        return LoKr(target.value, **factors, scale=scale, dropout=draw.rate(self.dropout), name=self.name)
