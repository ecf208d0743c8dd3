"""RandLoRA: a sum of as many random low-rank products as make it of full rank, each scaled by trained vectors (2502.00987, 2025).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = RandLoRA(base=W, a=(shared), b=(shared), weights=[L, R, N], gains=[L, N, s], scale=[L])
            shared/<name>/randlora/a = [R, the longest s],  shared/<name>/randlora/b = [N of the longest s, R, the longest l]

    ΔW = scale · Σ_rn weights_rn (A_r ⊙ gains_n)ᵀ B_nr,      or transposed

    s, l = the shorter and the longer side of the kernel,      N = ⌈s / R⌉,      scale = alpha / rank

    thin = rows A_r ⊙ gains_n · weights_rn [N R, s],      ΔW = scale · thinᵀ B [N R, l] where in = s,   scale · Bᵀ thin where in = l

A and B are frozen, held once for all kernels, and read as far as a kernel is long. Row by row the thin matrix is in the order of (r, n),
and B in that of (n, r), as HF PEFT pairs them. Weights start at zero: the start is the base exactly. In HF PEFT: a is `randlora_A[:, 0]`, b
is `randlora_B` with axes (1, 2, 0), weights is `randlora_lambda`, gains is `randlora_gamma`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import dot, node
from peftjax.nn.shared import hold
from peftjax.nn.thin import expand, shrink
from peftjax.peft.bounds import require_known, require_positive, require_rate
from peftjax.peft.delta import Delta, wrap
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target, select

BASES = ("dense", "sparse", "very_sparse")


@node(arrays=("base", "a", "b", "weights", "gains", "scale", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class RandLoRA(Delta):
    """The node. base: kernel [in, out]; weights: [R, N]; gains: [N, s]; scale: []; dropout: rate [] or None; these with a leading L outside
    the scanned body. a: [R, s or more]; b: [N or more, R, l or more]; both without a layer axis."""

    base: Any
    a: Any
    b: Any
    weights: jax.Array
    gains: jax.Array
    scale: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("weights", "gains")

    def _bases(self):
        """(thin [..., N R, s] as it is trained, B [N R, l] frozen)."""
        count, short = self.gains.shape[-2:]
        thin = jnp.einsum("...ns,rs->...rns", self.gains, self.a[:, :short]) * self.weights[..., None]
        long = self.b[:count, :, : max(self.shape[-2:])]
        return thin.reshape(*thin.shape[:-3], -1, short), long.reshape(-1, long.shape[-1])

    def delta(self):
        thin, long = self._bases()
        thin = thin * self.scale[..., None, None]
        upright = self.shape[-2] <= self.shape[-1]
        return jnp.einsum("...pi,po->...io", thin, long) if upright else jnp.einsum("pi,...po->...io", long, thin)

    def change(self, x):
        thin, long = self._bases()
        scale = self.scale.astype(x.dtype)
        if self.shape[0] <= self.shape[1]:
            return dot(shrink(x, thin) * scale, long)
        return expand(dot(x, long.T) * scale, thin)


@dataclasses.dataclass(frozen=True)
class randlora:  # noqa: N801 (configs read `randlora(rank=32)`)
    """RandLoRA on chosen linear kernels.

    Attributes:
        rank: R, of each random product. A lower one trains more numbers: there are more products.
        alpha: scale = alpha / rank.
        bases: how A and B are drawn: "dense" uniformly; "sparse" from -1, 0, 1 with a sixth for each sign, "very_sparse" with half of one
            over the root of the longest s for each sign. All are scaled to a standard deviation of 1.
        seed: of A and B, which do not depend on the key, so that all members of a population have the same.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        dropout: rate on the input, at training time.
        layers: layers to adapt, default all.
        name: of the adapter. Its A and B are held by this name: one name has one `randlora`.
    """

    rank: int = 32
    alpha: float = 640
    bases: str = "dense"
    seed: int = 0
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        require_positive("RandLoRA", rank=self.rank)
        require_known("RandLoRA", "bases", self.bases, BASES)
        require_rate("RandLoRA", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a RandLoRA node around every target, and the random matrices once.

        Raises:
            ValueError: a target or a layer that names nothing; a second RandLoRA of one name.
        """
        targets = select(params, self.targets, self.layers, names=("kernel",))
        short, long = sorted(max(target.value.shape[axis] for target in targets) for axis in (-2, -1))
        values = Draw(jax.random.key(self.seed), "randlora", None)
        a = values("a", self._random(short, self.rank, short))
        b = values("b", self._random(short, _count(short, self.rank), self.rank, long))
        params, shared_a = hold(params, f"{self.name}/randlora/a", a, self.name)
        params, shared_b = hold(params, f"{self.name}/randlora/b", b, self.name)

        def make(target: Target, draw: Draw) -> RandLoRA:
            in_stack = target.layers is not None  # what is shared reaches the layers of the stack alone
            side = min(target.value.shape[-2:])
            count = _count(side, self.rank)
            return RandLoRA(
                target.value, shared_a if in_stack else a, shared_b if in_stack else b, draw.full(0.0, self.rank, count),
                draw.full(1 / max(count, side), count, side), draw.full(self.alpha / self.rank), draw.rate(self.dropout), self.name,
            )

        return wrap(params, key, self.targets, self.layers, self.name, make)

    def _random(self, short: int, *shape: int):
        def draw(key):
            value = jax.random.uniform(key, shape, minval=-1.0)
            if self.bases != "dense":
                nonzero = 1 / 3 if self.bases == "sparse" else short**-0.5
                value = jnp.where(jnp.abs(value) > 1 - nonzero, jnp.sign(value), 0.0)
            return value / jnp.std(value, ddof=1)

        return draw


def _count(short: int, rank: int) -> int:
    """N: products of that rank until they may fill the shorter side."""
    return -(-short // rank)
