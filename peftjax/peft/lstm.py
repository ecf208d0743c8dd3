"""LSTMs over a short sequence, in both directions, as PyTorch's `nn.LSTM(bidirectional=True)` has them (Hochreiter and Schmidhuber, 1997).

    i, f, g, o = W x_t + U h_(t-1) + both biases        c_t = σ(f) c_(t-1) + σ(i) tanh(g)        h_t = σ(o) tanh(c_t)
    layer:  [h of the sequence ; h of the sequence read backwards]

Axes: T steps, M size of a state; gates are rows in the order i, f, g, o.
"""

import jax
import jax.numpy as jnp


def both_ways(x: jax.Array, inputs: jax.Array, states: jax.Array, biases: jax.Array) -> jax.Array:
    """One layer from states of zero: x [T, in], inputs [2, 4M, in], states [2, 4M, M], biases [2, 2, 4M] (of inputs, of states) for the
    forward and the backward direction -> [T, 2M]."""
    forward = one_way(x, inputs[0], states[0], biases[0])
    backward = one_way(x[::-1], inputs[1], states[1], biases[1])[::-1]
    return jnp.concatenate([forward, backward], axis=-1)


def one_way(x: jax.Array, inputs: jax.Array, states: jax.Array, biases: jax.Array) -> jax.Array:
    """x [T, in], inputs [4M, in], states [4M, M], biases [2, 4M] -> [T, M]."""
    given = x @ inputs.T + jnp.sum(biases, axis=0)[None]

    def step(carried, row):
        hidden, cell = carried
        enter, keep, new, leave = jnp.split(row + states @ hidden, 4)
        cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
        hidden = jax.nn.sigmoid(leave) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zero = jnp.zeros(states.shape[-1], given.dtype)
    return jax.lax.scan(step, (zero, zero), given)[1]
