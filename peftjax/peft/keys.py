"""Random keys by path: the initial values at a path do not depend on what else is attached, in which order, or on how the stack of
layers is cut."""

import hashlib

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
