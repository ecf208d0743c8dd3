"""What one adapter changes of the weights it stands on, weight by weight and layer by layer.

    changes(params, "tone")["blocks/7/attn/q/kernel"].read() == Change(weight=ΔW, bias=None)

ΔW is what the adapter does to the base alone, whatever stands beside it in the tree. It is a pair of factors where the adapter says that it
is of low rank (`Delta.factors`), else dense: the sum of `Delta.delta()`, or, of what is no sum (DoRA, transforms, trained weights), the
merged weight less the weight, both in float32 whatever the dtype of the base. Nothing is computed before it is read, so that one dense
layer at a time is held.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.nn.kernels import Entry, Kernel, dense
from peftjax.nn.shared import STORE, SharedValue, fill
from peftjax.nn.tree import get, place, walk
from peftjax.peft.attach import activate, names_in
from peftjax.peft.compose import decompose
from peftjax.peft.delta import Delta
from peftjax.peft.factored import Factors, Matrix, total
from peftjax.peft.select import KERNELS


class Change(NamedTuple):
    """Of one weight of one layer. weight: [in, out]; bias: [out] of what is added whatever the input is, or None."""

    weight: Matrix
    bias: np.ndarray | None = None

    def is_finite(self) -> bool:
        """Whether all numbers are."""
        parts = (*self.weight, self.bias) if isinstance(self.weight, Factors) else (self.weight, self.bias)
        return all(np.isfinite(part).all() for part in parts if part is not None)


@dataclasses.dataclass(frozen=True, eq=False)
class Changed:
    """A change that can be read. node: the nodes of that adapter alone; bias: what stands beside the weight; both with a leading L where
    `layer` is given; store: the tree's shared values."""

    node: Any
    bias: Any
    layer: int | None
    store: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        return tuple(self.node.shape[-2:])

    def read(self) -> Change:
        """What there is, float64.

        Raises:
            TypeError: a node without a dense form.
        """
        with jax.default_matmul_precision("highest"):
            return Change(self._weight(), self._bias())

    def weight(self) -> np.ndarray:
        """The weight that is changed, [in, out] float64."""
        return np.asarray(dense(self._layer(_under(self.node))), np.float64)

    def _weight(self) -> Matrix:
        parts = []
        for one in _chain(self.node):
            found = self._own(one, jax.ShapeDtypeStruct(self.shape, jnp.float32)).factors() if isinstance(one, Delta) else None
            if found is None:
                return self._dense()
            a, b = (np.asarray(factor, np.float64) for factor in found)
            used = a.any(axis=1) | b.any(axis=1)  # rows past the rank of a layer are zero in both
            parts.append(Factors(a[used], b[used]))
        rows, width = self.shape
        return total(parts, [1.0] * len(parts)) if parts else Factors(np.zeros((0, rows)), np.zeros((0, width)))

    def _dense(self) -> np.ndarray:
        weight, chain = self._on_float32(self.node), _chain(self.node)
        if all(isinstance(one, Delta) for one in chain):
            return sum(np.asarray(one.delta(), np.float64) for one in _chain(weight))
        return np.asarray(weight.merge(), np.float64) - np.asarray(_under(weight), np.float64)

    def _bias(self) -> np.ndarray | None:
        """What merging adds to the bias that stands there, or to none."""
        if not _chain(self.node):
            return None
        beside, node = self._layer(self.bias), self._on_float32(self.node)
        own = node.merged_bias()
        if beside is not None:
            beside = dense(beside).astype(jnp.float32)
            changed = node.changed_bias(beside)
            if changed is not beside:
                own = changed - beside + (0 if own is None else own)
        return None if own is None else np.asarray(own, np.float64)

    def _layer(self, value: Any) -> Any:
        return value if self.layer is None else jax.tree.map(lambda leaf: leaf[self.layer], value)

    def _own(self, node: Any, base: Any) -> Any:
        """One layer of a node, on `base`."""
        fields = {field: fill(self._layer(getattr(node, field)), self.store) for field in node.array_fields if field != "base"}
        return dataclasses.replace(node, base=base, **fields)

    def _on_float32(self, value: Any) -> Any:
        """One layer of the nodes, on the weight in float32: merging rounds to the weight's own dtype."""
        if isinstance(value, Kernel) and hasattr(value, "name"):
            return self._own(value, self._on_float32(value.base))
        return dense(self._layer(value)).astype(jnp.float32)


def changes(params: dict, name: str) -> dict[str, Changed]:
    """What the adapter called `name` changes, by path with the layer's number, in whatever composition it is.

    A head that is tied to an embedding and does not follow its adapter is named too, with a change of rank 0.

    Raises:
        ValueError: no adapter of that name.
        TypeError: a piece of it that is no change of a matrix, with its path.
    """
    alone, found = activate(decompose(params), [name]), {}
    for path, value in walk(alone):
        if isinstance(value, SharedValue):
            continue
        if isinstance(value, Entry):
            raise TypeError(f"{path}: a network at a site changes no weight; keep {name!r} beside the others, or train one in its place")
        if not isinstance(value, Kernel) or not names_in(value):
            continue
        module, _, last = path.rpartition("/")
        if last not in KERNELS:
            raise TypeError(
                f"{path}: {name!r} trains a vector here, and what is mixed are matrices and the biases that come with them; "
                f"merge(params, [{name!r}]) folds it into the base"
            )
        bias = get(alone, f"{module}/bias")
        for layer, key in keys(path, value.shape[0]):
            found[key] = Changed(value, bias, layer, alone.get(STORE, {}))
    return found


def keys(path: str, leading: int) -> list[tuple[int | None, str]]:
    """(index along the layer axis, path with the layer's number) for each layer of what stands at `path`; (None, path) outside a stack."""
    logical, layers = place(path, leading)
    if layers is None:
        return [(None, path)]
    return [(i, logical.replace("blocks/", f"blocks/{layer}/", 1)) for i, layer in enumerate(layers)]


def _chain(value: Any) -> list[Kernel]:
    """The adapter's nodes around a weight, the outermost first."""
    found = []
    while isinstance(value, Kernel) and hasattr(value, "name"):
        found.append(value)
        value = value.base
    return found


def _under(value: Any) -> Any:
    chain = _chain(value)
    return chain[-1].base if chain else value
