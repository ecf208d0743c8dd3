"""Adapters shared across layers: one set of trained values for a whole stack.

    before  blocks/attn/q/kernel = W [L, in, out]
    after   blocks/attn/q/kernel = LoRA(base=W, a=Shared(...), b=Shared(...), scale=[L])
            shared/default/blocks/attn/q/kernel/a = [R, in],   .../b = [R, out]                  one of each

    across_layers(lora(rank=8))                             L times fewer trained values; any other method likewise

The method attaches as it would, and what it trains is then held once (`peftjax.nn.shared`), with the values of the first adapted layer.
Gradients add up over the layers. What a method does not train (scales, rates) stays with each layer.
"""

import dataclasses
import re
from typing import Any

import jax

from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.shared import SharedValue, hold, is_shared
from peftjax.nn.tree import place, put, walk
from peftjax.peft.dora import DoRA
from peftjax.peft.parts import Trained

OF_THE_BASE = (DoRA, Trained)  # they start from each layer's own weight


@dataclasses.dataclass(frozen=True)
class across_layers:  # noqa: N801 (configs read `across_layers(lora(rank=8))`)
    """A method whose trained values all layers share.

        y_l = f_l(x; θ),  one θ for all layers l

    Attributes:
        of: the method; its `layers` are those that share.
        name: of the adapter; "" is that of the method.
    """

    of: Any
    name: str = ""

    def __post_init__(self):
        object.__setattr__(self, "name", self.name or self.of.name)
        for pattern in getattr(self.of, "rank_pattern", {}):
            if re.match(r"blocks/\d", pattern):
                raise ValueError(f"across_layers: rank_pattern {pattern!r} gives one layer a rank of its own, and all share their values")

    @property
    def layers(self):
        """As of the method."""
        return getattr(self.of, "layers", None)

    def attach(self, params: dict, key: jax.Array) -> dict:
        """A new tree with the method in it, its trained values held once.

        Raises:
            ValueError: as the method, or nothing of it lies in the stack, or it starts from each layer's own weight.
        """
        before = {id(node) for _, value in walk(params) for node in _chain(value)}
        params = dataclasses.replace(self.of, name=self.name).attach(params, key)
        held: dict[str, Any] = {}
        for path, value in sorted(walk(params), key=_first_layer):
            own = [node for node in _chain(value) if getattr(node, "name", None) == self.name and id(node) not in before]
            if isinstance(value, SharedValue) or not own or not path.startswith("blocks"):
                continue
            logical = place(path, 1).logical
            if isinstance(value, Entry):
                logical = logical.rpartition("/")[0]  # the name comes first in the store
            for node in own:
                params, shared = self._shared(params, held, node, logical, path)
                value = _replaced(value, node, shared)
            params = put(params, path, value)
        if not held:
            raise ValueError(f"across_layers({type(self.of).__name__}(...)): nothing of it is trained in the stack of layers")
        return params

    def _shared(self, params: dict, held: dict, node: Any, logical: str, path: str) -> tuple[dict, Any]:
        """(the tree, the node with its trained values shared)."""
        if isinstance(node, OF_THE_BASE):
            raise ValueError(f"across_layers: {type(node).__name__} at {path} starts from each layer's own weight: it cannot share values")
        changed = {}
        for field in node.trainable:
            leaf, at = getattr(node, field), f"{self.name}/{logical}/{field}"
            if leaf is None or is_shared(leaf):
                continue
            if at not in held:
                role = "fast" if field in node.fast else "matrix" if field in node.matrices else "vector"
                params, held[at] = hold(params, at, leaf[0], self.name, trains=True, role=role, spread=True)
            changed[field] = held[at]
        return params, dataclasses.replace(node, **changed)


def _chain(value: Any) -> list[Any]:
    """A node and what it wraps, or an entry."""
    found = []
    while isinstance(value, Kernel | Entry):
        found.append(value)
        value = getattr(value, "base", None)
    return found


def _replaced(value: Any, old: Any, new: Any) -> Any:
    """A node in which `old`, itself or something that it wraps, is `new`."""
    return new if value is old else dataclasses.replace(value, base=_replaced(value.base, old, new))


def _first_layer(item: tuple[str, Any]) -> tuple[int, str]:
    path, _ = item
    layers = place(path, 1).layers
    return (-1 if layers is None else layers.start, path)
