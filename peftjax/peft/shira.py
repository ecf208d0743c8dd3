"""SHiRA: a few entries of the weight, chosen before training, are trained (2406.13175, 2024).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = SHiRA(base=W, values=[L, n], rows=[L, n], columns=[L, n])

    ΔW is zero but for ΔW[rows, columns] = values,      n = rank · (in + out), as many as a LoRA trains

Values start at zero: the start is the base exactly. Which entries is part of the tree (int32), so that no generator is needed to read a
checkpoint. In HF PEFT: values are `shira_weight`, columns and rows the first and second line of `shira_indices`.

A batch of many tokens is multiplied by a dense ΔW, a few tokens (decoding) entry by entry.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import dense, node
from peftjax.peft.bounds import require_known, require_positive
from peftjax.peft.delta import Delta, weight_under, wrap
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target
from peftjax.peft.sparse import positions, scatter, times

MASKS = ("random", "magnitude")


@node(arrays=("base", "values", "rows", "columns", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class SHiRA(Delta):
    """The node. base: kernel [in, out]; values: [n]; rows, columns: int32 [n], no pair twice; all with a leading L outside the scanned
    body. dropout: None."""

    base: Any
    values: jax.Array
    rows: jax.Array
    columns: jax.Array
    name: str
    dropout: jax.Array | None = None

    trainable = ("values",)
    matrices = ("values",)

    def delta(self):
        return scatter(self.values, self.rows, self.columns, self.shape)

    def change(self, x):
        tokens, (rows, width) = math.prod(x.shape[:-1]), self.shape
        if tokens * self.values.size > rows * width:
            return super().change(x)
        return times(x, self.values, self.rows, self.columns, width)


@dataclasses.dataclass(frozen=True)
class shira:  # noqa: N801 (configs read `shira(rank=32)`)
    """SHiRA on chosen linear kernels.

    Attributes:
        rank: sets how many entries are trained, rank · (in + out).
        mask: which: "random", or the largest of the weight by "magnitude".
        seed: of a random mask; None takes it from the key that the rest is drawn from.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    rank: int = 32
    mask: str = "random"
    seed: int | None = None
    targets: str | Sequence[str] = "all-linear"
    layers: Sequence[int] | None = None
    name: str = "default"

    def __post_init__(self):
        require_positive("SHiRA", rank=self.rank)
        require_known("SHiRA", "mask", self.mask, MASKS)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a SHiRA node around every target.

        Raises:
            ValueError: a target or a layer that names nothing; a kernel with fewer entries than are to be trained.
        """
        key = key if self.seed is None else jax.random.key(self.seed)
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> SHiRA:
        rows, width = target.value.shape[-2:]
        count, size = self.rank * (rows + width), rows * width
        if count > size:
            raise ValueError(f"SHiRA rank {self.rank} would train {count:,} entries of {target.path}, which has {size:,}")
        if self.mask == "random":
            chosen = draw("rows", lambda key: jax.random.permutation(key, size)[:count])
        else:
            chosen = _largest(weight_under(target.value), count)
        return SHiRA(target.value, draw.full(0.0, count), *positions(jnp.sort(chosen, axis=-1), width), self.name)


def _largest(weight: Any, count: int) -> jax.Array:
    """Positions of the `count` largest absolute values of a weight, [n]; of a stack one layer after the other, so that one is dense."""
    if len(weight.shape) > 2:
        return jax.lax.map(lambda layer: _largest(layer, count), weight)
    return jax.lax.top_k(jnp.abs(dense(weight).astype(jnp.float32)).reshape(-1), count)[1]
