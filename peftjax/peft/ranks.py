"""Ranks, and other numbers, that differ between targets or between the layers of a stack.

A stack holds one array for all its layers, with as many rows as the highest rank among them. Rows past a layer's own rank are zero in every
factor, and stay zero: their gradients are products of each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.peft.select import Target, module_of, resolve


def at_layers(patterns: Mapping[str, Any], target: Target, default: Any) -> list[Any]:
    """The value for each layer of a target, or for the one kernel that it is: the first pattern that names it, else `default`."""
    return [resolve(patterns, module_of(target.logical), layer, default) for layer in (target.layers or [None])]


def at_once(patterns: Mapping[str, Any], target: Target, default: Any, what: str) -> Any:
    """The one value for all layers of a target.

    Raises:
        ValueError: they differ, and the shapes of what is stacked would.
    """
    values = at_layers(patterns, target, default)
    if len(set(values)) > 1:
        raise ValueError(f"{what} must be one number in a scanned stack; {target.path} has {sorted(set(values))}")
    return values[0]


def leaf(values: Sequence[float], target: Target) -> jax.Array:
    """float32 [L], or [] outside a stack."""
    return jnp.asarray(values if target.layers else values[0], jnp.float32)


def own_rows(value: jax.Array, ranks: Sequence[int]) -> jax.Array:
    """value [L, R, n] with zero in the rows past the rank of each layer; as it is where all have the same, or there is one."""
    if len(set(ranks)) == 1:
        return value
    used = jnp.arange(value.shape[1])[None, :] < jnp.asarray(ranks)[:, None]
    return jnp.where(used[..., None], value, 0.0)
