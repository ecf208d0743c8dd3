"""The training step: one pure function of (state, frozen base, batch).

    state, metrics = step(state, frozen, batch)

Gradients are those of the *sum* of the token losses, divided once by the number of tokens: so a batch gives the same step whole, in
accumulated pieces, on one device, on a mesh (jit) or under `pmap`. Where methods penalise their own values (`peftjax.peft.penalty`), the
gradient of that is added once, whatever the batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from peftjax.peft.partition import combine
from peftjax.peft.penalty import penalty
from peftjax.train.loss import head_is_frozen, token_losses
from peftjax.train.optimiser import learning_rate


@struct.dataclass
class TrainState:
    """What a run is, beside its frozen base: trainables (float32 masters), optimiser state, step (int32: updates done), and run key."""

    trainable: Any
    optimiser: Any
    step: jax.Array
    key: jax.Array


def new_state(trainable: Any, optimiser: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """The state before the first step; it holds `trainable` and `key` themselves, which a donating step uses up."""
    return TrainState(trainable, optimiser.init(trainable), jnp.int32(0), key)


def make_step(
    model: nn.Module, optimiser: optax.GradientTransformation, *, accumulate: int = 1, dropout: bool = False, axis: str | None = None,
    arrange: Callable[[Any, Any], Any] = lambda params, batch: params, follow: Callable[[Any, Any], Any] = lambda frozen, step: frozen,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """The step function.

    Args:
        model: the decoder or encoder.
        optimiser: of the trainables.
        accumulate: the batch is worked through in this many pieces; its rows must divide by it.
        dropout: give the model dropout keys, of (run, step, piece, and device under `axis`).
        axis: name of the mapped axis under `pmap`, None under `jit`.
        arrange: (params, batch) -> params, what of the tree follows the batch: which adapter each row is for (`peftjax.peft.route`).
        follow: (frozen, step) -> frozen, what of the frozen half follows the number of updates done (`peftjax.train.annealing`).

    Returns:
        step(state, frozen, batch) -> (state, metrics): loss (mean nats a token, without penalties), accuracy (of tokens), tokens that
        carried loss, grad_norm, learning_rate, all scalars.
    """

    def summed(trainable, frozen, batch, key):
        params = arrange(combine(trainable, frozen), batch)
        losses, right = token_losses(model, params, batch, key, head_is_frozen(trainable))
        return jnp.sum(losses * batch.weights), (jnp.sum(batch.weights), jnp.sum(right * batch.weights))

    def piece(trainable, frozen, batch, key):
        (loss, (tokens, right)), grads = jax.value_and_grad(summed, has_aux=True)(trainable, frozen, batch, key)
        return grads, jnp.stack([loss, tokens, right])

    def step(state: TrainState, frozen, batch):
        frozen = follow(frozen, state.step)
        key = jax.random.fold_in(state.key, state.step) if dropout else None
        if key is not None and axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        if accumulate == 1:
            grads, sums = piece(state.trainable, frozen, batch, key)
        else:
            grads, sums = _accumulated(piece, state.trainable, frozen, batch, key, accumulate)
        if axis is not None:
            grads, sums = jax.lax.psum((grads, sums), axis)
        loss, tokens, right = sums
        scale = 1.0 / jnp.maximum(tokens, 1.0)
        grads = _penalised(jax.tree.map(lambda g: g * scale, grads), state.trainable, frozen)
        updates, opt_state = optimiser.update(grads, state.optimiser, state.trainable)
        metrics = {
            "loss": loss * scale, "accuracy": right * scale, "tokens": tokens,
            "grad_norm": optax.tree.norm(grads), "learning_rate": learning_rate(opt_state),
        }
        return TrainState(optax.apply_updates(state.trainable, updates), opt_state, state.step + 1, state.key), metrics

    return step


def _penalised(grads, trainable, frozen):
    """Gradients with those of the nodes' penalties; the same where there are none."""
    if jax.eval_shape(lambda t: penalty(combine(t, frozen)), trainable) is None:
        return grads
    own = jax.grad(lambda t: penalty(combine(t, frozen)))(trainable)
    return jax.tree.map(jnp.add, grads, own)


def _accumulated(piece, trainable, frozen, batch, key, pieces: int):
    """Sums of gradients and of losses over `pieces` parts of the batch, one after another. Part i takes rows i, i + pieces, ...: then each
    device of a sharded batch keeps its own rows."""
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 1, 0), batch)

    def add(carry, numbered):
        number, part = numbered
        new = piece(trainable, frozen, part, None if key is None else jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, carry, new), None

    zeros = (jax.tree.map(jnp.zeros_like, trainable), jnp.zeros(3))
    return jax.lax.scan(add, zeros, (jnp.arange(pieces), parts))[0]
