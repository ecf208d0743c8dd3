"""IA3: one learned number a channel (2205.05638, 2022).

    before  blocks/attn/k/kernel = W [L, in, out]
    after   blocks/attn/k/kernel = IA3(base=W, scale=[L, out], at="output")         keys and values
            blocks/mlp/down/kernel = IA3(base=W, scale=[L, in], at="input")         the MLP's activations

    y = (x W + bias) ⊙ l,  or (x ⊙ l) W + bias

The scales start at one, on the base exactly. These places are the paper's and HF PEFT's. AdapterHub's on a Llama scale the output of the
MLP instead of its input: `ia3(feedforward=())`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import node
from peftjax.peft.delta import wrap
from peftjax.peft.keys import Draw
from peftjax.peft.select import Target, as_patterns, matches, module_of, select
from peftjax.peft.transform import Transform


@node(arrays=("base", "scale"), static=("at", "name"))
@dataclasses.dataclass(frozen=True)
class IA3(Transform):
    """The node. base: kernel [in, out]; scale: [out] where `at` is "output", [in] where it is "input"."""

    base: Any
    scale: jax.Array
    at: str
    name: str

    trainable = ("scale",)

    @property
    def whole(self):
        return self.at == "output"

    def before(self, x):
        return x * self._scale(x) if self.at == "input" else x

    def after(self, y):
        return y * self._scale(y) if self.at == "output" else y

    def off(self):
        return dataclasses.replace(self, scale=jnp.ones_like(self.scale))

    def _scale(self, like):
        return jnp.broadcast_to(self.scale.astype(like.dtype), like.shape)


@dataclasses.dataclass(frozen=True)
class ia3:  # noqa: N801 (configs read `ia3()`)
    """IA3 on chosen kernels.

    Attributes:
        targets: see `peftjax.peft.select`.
        feedforward: those of the targets whose input is scaled; the output of the others is.
        layers: layers to adapt, default all.
        name: of the adapter.
    """

    targets: str | Sequence[str] = ("k_proj", "v_proj", "down_proj")
    feedforward: str | Sequence[str] = ("down_proj",)
    layers: Sequence[int] | None = None
    name: str = "default"

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with a node around every target.

        Raises:
            ValueError: a target or a layer that names nothing, or a feedforward module that is no target.
        """
        modules = {module_of(target.logical) for target in select(params, self.targets, self.layers, names=("kernel",))}
        for pattern in as_patterns(self.feedforward):
            if not any(matches(pattern, module) for module in modules):
                raise ValueError(f"ia3 feedforward {pattern!r} is none of the targets {', '.join(sorted(modules))}")
        return wrap(params, key, self.targets, self.layers, self.name, self._node)

    def _node(self, target: Target, draw: Draw) -> IA3:
        inside = any(matches(pattern, module_of(target.logical)) for pattern in as_patterns(self.feedforward))
        width = target.value.shape[-2 if inside else -1]
        return IA3(target.value, draw.full(1, width), "input" if inside else "output", self.name)
