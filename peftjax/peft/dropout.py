"""Dropout with the rate as an array leaf, so that members of a population may differ in it: of elements, or of whole rows."""

import jax
import jax.numpy as jnp

from peftjax.peft.keys import key_at


def drop(x: jax.Array, rate: jax.Array | None, key: jax.Array | None, name: str) -> jax.Array:
    """x with each element zeroed with probability `rate` and the rest divided by 1 - rate; x itself without a key or a rate.

    The key is folded with the adapter's name: adapters that share a place drop independently.
    """
    if rate is None or key is None:
        return x
    keep = jax.random.bernoulli(key_at(key, name), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate).astype(x.dtype), 0).astype(x.dtype)


def drop_rows(x: jax.Array, rate: jax.Array | None, key: jax.Array | None, name: str) -> jax.Array:
    """Stochastic depth (1603.09382, 2016): x [B, ...] with whole rows of the batch zeroed, else as `drop` does it with elements."""
    if rate is None or key is None:
        return x
    keep = jax.random.bernoulli(key_at(key, f"{name}/rows"), 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(jnp.broadcast_to(keep, x.shape), x / (1.0 - rate).astype(x.dtype), 0).astype(x.dtype)
