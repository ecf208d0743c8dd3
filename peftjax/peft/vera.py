"""VeRA: two trained vectors around two frozen random matrices that all kernels share (2310.11454, 2023).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = VeRA(base=W, a=(shared), b=(shared), lambda_d=[L, R], lambda_b=[L, out])
            shared/<name>/vera/a = [R, the widest in],  shared/<name>/vera/b = [R, the widest out]

    y = x W + ((x A[:, :in]ᵀ ⊙ d) B[:, :out]) ⊙ b

A kernel reads as much of A and B as it is wide. d starts at `d_initial`, b at zero: the start is the base exactly. Trained are R + out
numbers a kernel. In HF PEFT: a is `vera_A`, b is `vera_B` transposed, lambda_d is `vera_lambda_d`, lambda_b is `vera_lambda_b`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import dot, node
from peftjax.nn.shared import hold
from peftjax.peft.bounds import require_positive, require_rate
from peftjax.peft.delta import Delta, wrap
from peftjax.peft.keys import Draw, kaiming
from peftjax.peft.select import Target, select


@node(arrays=("base", "a", "b", "lambda_d", "lambda_b", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class VeRA(Delta):
    """The node. base: kernel [in, out]; lambda_d: [R]; lambda_b: [out]; dropout: rate [] or None; these with a leading L outside the
    scanned body. a: [R, in or more]; b: [R, out or more]; both without a layer axis."""

    base: Any
    a: Any
    b: Any
    lambda_d: jax.Array
    lambda_b: jax.Array
    dropout: jax.Array | None
    name: str

    trainable = ("lambda_d", "lambda_b")

    def factors(self):
        rows, width = self.shape[-2:]
        thin = jnp.einsum("...r,ri->...ri", self.lambda_d, self.a[:, :rows])
        return thin, jnp.einsum("...o,ro->...ro", self.lambda_b, self.b[:, :width])

    def change(self, x):
        rows, width = self.shape
        z = dot(x, self.a[:, :rows].T)
        y = dot(z * jnp.broadcast_to(self.lambda_d.astype(x.dtype), z.shape), self.b[:, :width])
        return y * jnp.broadcast_to(self.lambda_b.astype(x.dtype), y.shape)


@dataclasses.dataclass(frozen=True)
class vera:  # noqa: N801 (configs read `vera(rank=256)`)
    """VeRA on chosen linear kernels.

    Attributes:
        rank: R.
        d_initial: what every element of d starts from.
        seed: of A and B, which do not depend on the key, so that all members of a population have the same.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        dropout: rate on the input of A, at training time.
        layers: layers to adapt, default all.
        name: of the adapter. Its A and B are held by this name: one name has one `vera`.
    """

    rank: int = 256
    d_initial: float = 0.1
    seed: int = 0
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        require_positive("VeRA", rank=self.rank)
        require_rate("VeRA", self.dropout)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a VeRA node around every target, and the two matrices once.

        Raises:
            ValueError: a target or a layer that names nothing; a second VeRA of one name.
        """
        targets = select(params, self.targets, self.layers, names=("kernel",))
        rows, width = (max(target.value.shape[axis] for target in targets) for axis in (-2, -1))
        values = Draw(jax.random.key(self.seed), "vera", None)
        a = values("a", kaiming(rows / 6, self.rank, rows))  # U(±sqrt(6 / fan)), as PEFT draws them
        b = values("b", kaiming(self.rank / 6, self.rank, width))
        params, shared_a = hold(params, f"{self.name}/vera/a", a, self.name)
        params, shared_b = hold(params, f"{self.name}/vera/b", b, self.name)

        def make(target: Target, draw: Draw) -> VeRA:
            in_stack = target.layers is not None  # what is shared reaches the layers of the stack alone
            return VeRA(
                target.value, shared_a if in_stack else a, shared_b if in_stack else b, draw.full(self.d_initial, self.rank),
                draw.full(0.0, target.value.shape[-1]), draw.rate(self.dropout), self.name,
            )

        return wrap(params, key, self.targets, self.layers, self.name, make)
