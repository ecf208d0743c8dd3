"""SHiRA: a few entries of the weight, chosen before training, are trained (2406.13175, 2024).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = SHiRA(base=W, values=[L, n], rows=[L, n], columns=[L, n])

    ΔW is zero but for ΔW[rows, columns] = values,      n = rank · (in + out), as many as a LoRA trains

Values start at zero: the start is the base exactly. Which entries is part of the tree (int32), so that no generator is needed to read a
checkpoint. In HF PEFT: values are `shira_weight`, columns and rows the first and second line of `shira_indices`.

A batch of many tokens is multiplied by a dense ΔW, a few tokens (decoding) entry by entry.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
        seed: of a random mask, which does not depend on the key, so that all members of a population have the same.
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    rank: int = 32
    mask: str = "random"
    seed: int = 0
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
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> SHiRA:
        rows, width = target.value.shape[-2:]
        count, size = self.rank * (rows + width), rows * width
        if count > size:
            raise ValueError(f"SHiRA rank {self.rank} would train {count:,} entries of {target.path}, which has {size:,}")
        if self.mask == "random":
            layers = [_random(self.seed, f"{draw.path}/{layer}", size, count) for layer in draw.layers or [None]]
            chosen = np.stack(layers) if draw.layers else layers[0]
        else:
            chosen = jnp.sort(_largest(weight_under(target.value), count), axis=-1)
        return SHiRA(target.value, draw.full(0.0, count), *positions(chosen, width), self.name)


def _random(seed: int, path: str, size: int, count: int) -> np.ndarray:
    """`count` of `size` positions in order, int64: on the host, where that takes a thousandth of a permutation on the device."""
    words = np.frombuffer(hashlib.sha256(path.encode()).digest()[:8], np.uint32)
    return np.sort(np.random.default_rng([seed, *words]).choice(size, count, replace=False, shuffle=False))


def _largest(weight: Any, count: int) -> jax.Array:
    """Positions of the `count` largest absolute values of a weight, [n]; of a stack one layer after the other, so that one is dense."""
    if len(weight.shape) > 2:
        return jax.lax.map(lambda layer: _largest(layer, count), weight)
    return jax.lax.top_k(jnp.abs(dense(weight).astype(jnp.float32)).reshape(-1), count)[1]
