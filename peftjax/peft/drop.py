"""AdapterDrop (2010.11918, 2021): adapters of chosen layers switched off, at training or at inference time, without compiling again.

    params = drop_layers(params, range(0, 5))                    the lowest five layers compute as the base

Nothing is taken out of the tree: what scales an adapter is set to zero there, or its values are set to those at which it changes nothing
(`Kernel.off`). Which layers may be traced, so that one compiled step draws a new number of layers each time, as the paper trains. Layers
that never have adapters are left out when attaching, by `layers=`.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.shared import is_shared
from peftjax.nn.tree import place, put, walk
from peftjax.peft.attach import adapters, names_in
from peftjax.peft.composed import Composed, ComposedEntry


def drop_layers(params: dict, layers: Sequence[int] | jax.Array, names: Iterable[str] | None = None) -> dict:
    """A new tree in which the named adapters (default: all) change nothing on `layers`.

    Args:
        layers: numbers of layers, or bool [layers of the base], which may be traced. What lies outside the stack is left as it is.

    Raises:
        ValueError: no such adapter or layer.
        TypeError: a node that has no values at which it changes nothing, with its path.
    """
    present = adapters(params)
    names = set(present if names is None else names)
    if not names <= set(present):
        raise ValueError(f"no adapter is called {', '.join(sorted(names - set(present)))}; the tree holds {', '.join(present) or 'none'}")
    stacked = [(path, value, _layers(path, value)) for path, value in walk(params)]
    count = max((span.stop for _, _, span in stacked if span is not None), default=0)
    off = _mask(layers, count)
    for path, value, span in stacked:
        if span is not None and names_in(value) & names:
            try:
                params = put(params, path, _dropped(value, off[span.start : span.stop], names))
            except TypeError as error:
                raise TypeError(f"{path}: {error}") from error
    return params


def acting(params: dict) -> set[int]:
    """Numbers of the layers in which any adapter has something."""
    spans = (_layers(path, value) for path, value in walk(params) if names_in(value))
    return {layer for span in spans if span is not None for layer in span}


def _layers(path: str, value: Any) -> range | None:
    """The layers of what stands at a path in a stack; None outside, and for an entry that shares all of its values."""
    shape = next((one.shape for one in (value, *jax.tree.leaves(value)) if hasattr(one, "shape")), ())
    return place(path, shape[0]).layers if shape else None


def _mask(layers: Sequence[int] | jax.Array, count: int) -> jax.Array:
    """bool [count]."""
    if isinstance(layers, jax.Array) and layers.dtype == bool:
        if layers.shape != (count,):
            raise ValueError(f"drop_layers wants bool [{count}], one for each layer; found {list(layers.shape)}")
        return layers
    wanted = {int(layer) for layer in layers}
    if not wanted <= set(range(count)):
        raise ValueError(f"layers {sorted(wanted - set(range(count)))} are not among layers 0 to {count - 1}")
    return jnp.asarray([layer in wanted for layer in range(count)])


def _dropped(value: Any, off: jax.Array, names: set[str]) -> Any:
    """A node with what it wraps, or an entry, whose own values are those of `off()` where `off` [L] is true."""
    changed = {}
    if isinstance(value, Kernel) and isinstance(getattr(value, "base", None), Kernel):
        changed["base"] = _dropped(value.base, off, names)
    if isinstance(value, Composed | ComposedEntry):
        changed["parts"] = {name: _dropped(part, off, names) for name, part in value.parts.items()}
    if isinstance(value, Kernel | Entry) and getattr(value, "name", None) in names:
        shared = {field: jnp.zeros(()) for field in value.array_fields if is_shared(getattr(value, field))}
        before = dataclasses.replace(value, **shared)
        without = before.off()
        for field in value.array_fields:
            there, neutral = getattr(before, field), getattr(without, field)
            if field == "base" or neutral is there:
                continue
            if field in shared:
                raise TypeError(f"all layers share {field} of this {type(value).__name__}: one layer alone cannot be off")
            where = off.reshape(-1, *(1,) * (there.ndim - 1))
            changed[field] = jnp.where(jnp.broadcast_to(where, there.shape), neutral, there)
    return dataclasses.replace(value, **changed) if changed else value
