"""Random keys by path: the initial values at a path do not depend on what else is attached, in which order, or on how the stack of
layers is cut."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp


def key_at(key: jax.Array, path: str) -> jax.Array:
    """`key` folded with a logical path (64 bits of its sha256)."""
    digest = hashlib.sha256(path.encode()).digest()
    for word in (digest[:4], digest[4:8]):
        key = jax.random.fold_in(key, int.from_bytes(word, "little"))
    return key


def per_layer(init, key: jax.Array, path: str, layers: range | None) -> jax.Array:
    """`init(key)` for one parameter; for a stacked one, one draw for each layer on a new leading axis, keyed by the layer's number."""
    key = key_at(key, path)
    if layers is None:
        return init(key)
    return jax.vmap(lambda layer: init(jax.random.fold_in(key, layer)))(jnp.arange(layers.start, layers.stop))


class Draw(NamedTuple):
    """Initial values of one node: `path` is logical and ends in the adapter's name; `layers` are of its leading axis, None for none."""

    key: jax.Array
    path: str
    layers: range | None

    def __call__(self, field: str, init) -> jax.Array:
        """`init(key)` [...] of one field, or of each layer [L, ...]."""
        return per_layer(init, self.key, f"{self.path}/{field}", self.layers)

    def full(self, value: float, *shape: int) -> jax.Array:
        """A new float32 buffer of one value, [*shape] or [L, *shape]."""
        return jnp.full((*(() if self.layers is None else (len(self.layers),)), *shape), value, jnp.float32)

    def rate(self, dropout: float) -> jax.Array | None:
        """A dropout rate as a leaf; None for 0."""
        return self.full(dropout) if dropout else None


def kaiming(fan: float, *shape: int):
    """key -> U(-1/sqrt(fan), 1/sqrt(fan)) [*shape], float32: what PyTorch's linear layers start from."""
    return lambda key: jax.random.uniform(key, shape, minval=-(fan**-0.5), maxval=fan**-0.5)
