"""A dense weight in the form of a quantised one that is there already: what is left to do when an adapter was added to it.

    node = requantise(node, dense(node) + delta)

Two candidates are made: the weight quantised afresh with the node's own scheme, and the nearest codes on the grid that the node has. Block
by block the one with the smaller squared error is kept, so that a weight on the node's own grid comes back bit for bit, whatever grid it
is (GGUF's Q4_0 counts to 8 on one side only, which quantising afresh would not find). Where all blocks of a weight share constants (NF4's
double quantisation) the choice is one for the whole weight.
"""

import dataclasses

import jax
import jax.numpy as jnp

from peftjax.nn.quant import NF4, Affine4, Float8, Int8, Quantised, Scheme, quantise
from peftjax.nn.quant.quantised import in_blocks, per_block
from peftjax.nn.quant.words import pack

LEVELS = 16
_EACH = 0x11111111  # times a code: eight of that code in a word


def scheme_of(node: Quantised) -> Scheme:
    """How a node was quantised, as far as it shows."""
    k = node.stored[-2]
    match node:
        case Affine4():
            return Scheme("affine4", block=k // node.scale.shape[-2], symmetric=node.minimum is None)
        case NF4():
            return Scheme("nf4", block=k // node.absmax.shape[-2], double=node.scale is not None)
        case Int8():
            return Scheme("int8", block=None if node.scale.shape[-2] == 1 else k // node.scale.shape[-2])
        case Float8():
            return Scheme("float8")
    raise TypeError(f"{type(node).__name__} cannot be quantised again; what can is {', '.join(('Affine4', 'NF4', 'Int8', 'Float8'))}")


@jax.jit
def requantise(node: Quantised, weight: jax.Array) -> Quantised:
    """A weight of the node's logical shape, floating -> node of the same scheme and structure.

    Raises:
        TypeError: the node is of no known kind.
    """
    scheme = scheme_of(node)
    fresh = quantise(weight, scheme, rows=node.rows)
    fresh = jax.tree.map(lambda new, old: new.astype(old.dtype), dataclasses.replace(fresh, dtype=node.dtype), node)
    values = (jnp.swapaxes(weight, -1, -2) if node.rows else weight).astype(jnp.float32)
    kept = _on_grid(node, values)
    gain = jnp.square(fresh.values() - values) - jnp.square(kept.values() - values)
    if isinstance(node, NF4) and node.scale is not None:
        better = jnp.sum(gain, axis=(-2, -1)) >= 0
        return jax.tree.map(lambda new, old: jnp.where(_like(better, new), old, new), fresh, kept)
    better = jnp.sum(in_blocks(gain, scheme.block or node.stored[-2]), axis=-2) >= 0  # [.., G, N]
    return jax.tree.map(
        lambda new, old: jnp.where(jnp.repeat(better, new.shape[-2] // better.shape[-2], axis=-2), old, new), fresh, kept
    )


def _on_grid(node: Quantised, values: jax.Array) -> Quantised:
    """The node's constants with the codes that are nearest to `values` [.., K, N]."""
    if isinstance(node, Int8 | Float8):
        steps = per_block(jnp.where(node.scale == 0, 1, node.scale), node.stored[-2])
        codes = values / steps
        if isinstance(node, Int8):
            return dataclasses.replace(node, q=jnp.clip(jnp.round(codes), -128, 127).astype(jnp.int8))
        largest = float(jnp.finfo(node.q.dtype).max)
        return dataclasses.replace(node, q=jnp.clip(codes, -largest, largest).astype(node.q.dtype))

    def closer(code, best):
        distance, codes = best
        level = dataclasses.replace(node, words=jnp.full_like(node.words, code.astype(jnp.uint32) * _EACH)).values()
        there = jnp.abs(level - values)
        return jnp.minimum(there, distance), jnp.where(there < distance, code, codes)

    start = (jnp.full(values.shape, jnp.inf, jnp.float32), jnp.zeros(values.shape, jnp.int32))
    return dataclasses.replace(node, words=pack(jax.lax.fori_loop(0, LEVELS, closer, start)[1]))


def _like(flag: jax.Array, leaf: jax.Array) -> jax.Array:
    """One flag for each weight of a stack, beside the axes of a leaf."""
    return jnp.broadcast_to(flag.reshape(flag.shape + (1,) * (leaf.ndim - flag.ndim)), leaf.shape)
