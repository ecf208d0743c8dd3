"""A dense update beside the weight: what a merge gives where no low rank holds it, and a way to keep the change of a fully trained weight
apart from it (a task vector, 2212.04089, 2022).

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = DenseDelta(base=W, value=[L, in, out])

    ΔW = value,      from zero, so that the start is the base exactly
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from peftjax.nn.kernels import node
from peftjax.peft.delta import Delta, wrap
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target, as_patterns, with_head


@node(arrays=("base", "value", "dropout"), static=("name",))
@dataclasses.dataclass(frozen=True)
class DenseDelta(Delta):
    """The node. base: kernel [in, out]; value: [in, out]; both with a leading L outside the scanned body. dropout: None."""

    base: Any
    value: jax.Array
    name: str
    dropout: jax.Array | None = None

    trainable = ("value",)
    matrices = ("value",)

    def delta(self):
        return self.value


@dataclasses.dataclass(frozen=True)
class dense_delta:  # noqa: N801 (configs read `dense_delta()`)
    """A dense update of chosen linear kernels.

    Attributes:
        targets: regular expressions over logical paths, or the field's names; see `peftjax.peft.select`.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    targets: str | Sequence[str] = "all-linear"
    layers: Sequence[int] | None = None
    name: str = "default"

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a DenseDelta node around every target; `key` is not used.

        Raises:
            ValueError: a target or a layer that names nothing.
        """
        if {"lm_head", "head"} & set(as_patterns(self.targets)):
            params = with_head(params)
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> DenseDelta:
        return DenseDelta(target.value, draw.full(0.0, *target.value.shape[-2:]), self.name)
