"""AdaLoRA: a LoRA in the form of a singular value decomposition, whose ranks go where they matter (2303.10512, 2023).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = AdaLoRA(base=W, a=[L, R, in], e=[L, R], b=[L, R, out], scale=[L], orthogonality=[L])

    y = x W + s ((x Aᵀ) ⊙ e) B,      s = alpha / (R + 1e-5) as in HF PEFT, R the rank at the start

Rows of A and of B are kept near orthonormal by a penalty, so that an entry of e is the weight of a direction of its own; entries that
matter least over the whole model are set to zero while training goes on (`Allocation`, carried out by `peftjax.train.allocate`). All shapes
stay, and the number of entries that are left is a function of the step: nothing is compiled again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import node
from peftjax.peft.bounds import require_rate
from peftjax.peft.delta import LowRank, wrap
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target, select


@dataclasses.dataclass(frozen=True)
class Allocation:
    """How the ranks of all kernels together shrink.

    Attributes:
        target_rank: what is left of each kernel's rank on average.
        warmup: steps before anything is pruned.
        final: steps at the end in which what was pruned stays so.
        every: steps between two prunings.
        beta1, beta2: of the running means of sensitivity and of its uncertainty.
        steps: over which they shrink; None is as many as the run has.
    """

    target_rank: int
    warmup: int
    final: int
    every: int
    beta1: float
    beta2: float
    steps: int | None = None

    def budget(self, step: jax.Array, steps: int, start: int, target: int) -> tuple[jax.Array, jax.Array]:
        """(how many entries are left after `step` of `steps`, counted from 1; whether they are chosen anew at it), int32 and bool.

        From `start` entries at the end of the warm-up to `target` at `steps - final`, along a cubic.
        """
        end = steps - self.final
        left = 1 - (step - self.warmup) / (end - self.warmup)
        shrinking = jnp.floor((start - target) * left**3 + target + 1e-4).astype(jnp.int32)
        budget = jnp.where(step <= self.warmup, start, jnp.where(step >= end, target, shrinking))
        chosen = (step > self.warmup) & (step <= end) & ((step % self.every == 0) | (step == end))
        return budget, chosen


@node(arrays=("base", "a", "e", "b", "scale", "orthogonality", "dropout"), static=("plan", "name"))
@dataclasses.dataclass(frozen=True)
class AdaLoRA(LowRank):
    """The node. base: kernel [in, out]; a: [R, in]; e: [R]; b: [R, out]; scale: []; orthogonality: the penalty's weight []; dropout: rate
    [] or None; all with a leading L outside the scanned body."""

    base: Any
    a: jax.Array
    e: jax.Array
    b: jax.Array
    scale: jax.Array
    orthogonality: jax.Array
    dropout: jax.Array | None
    plan: Allocation
    name: str

    trainable = ("a", "e", "b")
    matrices = ("a", "b")
    fast = ("b",)

    def rows(self) -> tuple[jax.Array, jax.Array]:
        """(A [R, in], e B [R, out]), of which the change is s times the product."""
        return self.a, self.e[..., None] * self.b

    def off(self):
        return dataclasses.replace(self, e=jnp.zeros_like(self.e))

    def penalty(self) -> jax.Array:
        """orthogonality · (‖A Aᵀ - I‖ + ‖B Bᵀ - I‖), summed over layers."""
        far = sum(_from_orthonormal(rows) for rows in (self.a, self.b))
        return jnp.sum(self.orthogonality * far)


def _from_orthonormal(rows: jax.Array) -> jax.Array:
    """‖rows rowsᵀ - I‖ [...] of rows [..., R, n], with a gradient of zero where it is zero."""
    gap = jnp.einsum("...rn,...sn->...rs", rows, rows) - jnp.broadcast_to(jnp.eye(rows.shape[-2]), (*rows.shape[:-1], rows.shape[-2]))
    square = jnp.sum(jnp.square(gap), axis=(-2, -1))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


@dataclasses.dataclass(frozen=True)
class adalora:  # noqa: N801 (configs read `adalora(target_rank=8)`)
    """AdaLoRA on chosen linear kernels.

    Attributes:
        rank: R, of every kernel at the start.
        target_rank, warmup, final, every, beta1, beta2, steps: as of `Allocation` (HF PEFT's target_r, tinit, tfinal, deltaT, ...,
            total_step). Steps are those of the run, `config.train.steps`, unless they are given here.
        alpha: scale = alpha / (rank + 1e-5). None is alpha = rank.
        orthogonality: weight of the penalty, a mean over all A and B of this method.
        dropout: rate on the input of A, at training time.
        targets, layers, name: as of `peftjax.peft.lora`.
    """

    rank: int = 12
    target_rank: int = 8
    alpha: float | None = None
    warmup: int = 0
    final: int = 0
    every: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    steps: int | None = None
    orthogonality: float = 0.5
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        if not 1 <= self.target_rank <= self.rank:
            raise ValueError(f"AdaLoRA shrinks rank {self.rank} to target_rank {self.target_rank}, which has to be 1 to {self.rank}")
        for field, low in (("warmup", 0), ("final", 0), ("every", 1), ("orthogonality", 0)):
            if getattr(self, field) < low:
                raise ValueError(f"AdaLoRA {field} {getattr(self, field)} is less than {low}")
        for field in ("beta1", "beta2"):
            if not 0 < getattr(self, field) < 1:
                raise ValueError(f"AdaLoRA {field} {getattr(self, field)} is not between 0 and 1")
        if self.steps is not None and self.warmup >= self.steps - self.final:
            raise ValueError(f"AdaLoRA warmup {self.warmup} and final {self.final} leave none of {self.steps} steps to shrink ranks in")
        require_rate("AdaLoRA", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a node around every target; e is zero, so that the start is the base exactly.

        Raises:
            ValueError: a target or a layer that names nothing.
        """
        targets = select(params, self.targets, self.layers, names=("kernel",))
        matrices = sum(2 * (1 if target.layers is None else len(target.layers)) for target in targets)
        return wrap(params, key, self.targets, self.layers, self.name, lambda target, draw: self._node(target, draw, matrices))

    def _node(self, target: Target, draw: Draw, matrices: int) -> AdaLoRA:
        rows, width = target.value.shape[-2:]
        a = draw("a", lambda rng: 0.02 * jax.random.normal(rng, (self.rank, rows)))
        b = draw("b", lambda rng: 0.02 * jax.random.normal(rng, (self.rank, width)))
        scale = draw.full((self.rank if self.alpha is None else self.alpha) / (self.rank + 1e-5))
        plan = Allocation(self.target_rank, self.warmup, self.final, self.every, self.beta1, self.beta2, self.steps)
        weight = draw.full(self.orthogonality / matrices)
        return AdaLoRA(target.value, a, draw.full(0, self.rank), b, scale, weight, draw.rate(self.dropout), plan, self.name)
