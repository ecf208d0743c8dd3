"""The loss: cross-entropy at the positions that carry it, of the next token of a response or of the label of a text.

Hidden states are taken at the positions that carry loss before the head is applied, and the head works in chunks, so that logits of
prompts and padding are never computed and [tokens, V] is never whole in memory.

A position's loss depends on its own hidden state h alone. So where the head is frozen, dl/dh = (softmax(logits) - onehot(target)) W^T is
computed with the loss while a chunk's logits are there, and is all that the backward pass needs: it neither recomputes logits nor ever
forms a gradient of the head. Evaluation computes no such thing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.models.encoder import Encoder

CHUNK = 128  # positions whose logits are alive at once: 25 MB in float32 at a vocabulary of 49152; more is no faster on two cores
HEAD = ("embed", "head", "pool")  # what logits are read from; the embedding where the head is tied to it


def head_is_frozen(trainable: dict) -> bool:
    """Whether a trainable tree leaves everything alone that logits are read from."""
    return not jax.tree.leaves({name: part for name, part in trainable.items() if name in HEAD})


def token_losses(
    model: nn.Module, params: Any, batch: Any, key: jax.Array | None = None, frozen_head: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Per position that carries loss: (negative log-likelihood [B, M] float32, whether the likeliest token is the right one [B, M] bool).

    `batch` has tokens, segments, positions [B, T], until and types [B, T] or None, and loss_positions, targets [B, M]; `key` switches
    dropout on. `model` is a decoder or an encoder. `frozen_head` says that nothing the logits are read from is differentiated.
    """
    rngs = None if key is None else {"dropout": key}
    inputs = {name: getattr(batch, name) for name in ("segments", "positions", "until", "types") if getattr(batch, name) is not None}
    if isinstance(model, Encoder):
        inputs["texts"] = batch.loss_positions.shape[1]  # each carries loss once
    hidden, _ = model.apply({"params": params}, batch.tokens, **inputs, method="hidden", rngs=rngs)
    hidden = jnp.take_along_axis(hidden, batch.loss_positions[:, :, None], axis=1)
    head = functools.partial(_losses, model, rngs)
    if frozen_head:
        weights = jax.lax.stop_gradient({name: part for name, part in params.items() if name in HEAD})
        return _with_gradient(head, hidden, batch.targets, weights)
    return _chunked(jax.checkpoint(lambda h, t: head(h, t, params), prevent_cse=False), hidden, batch.targets)


def _losses(model: nn.Module, rngs: dict | None, hidden, targets, params: Any) -> tuple[jax.Array, jax.Array]:
    """Losses of some positions, and whether the right token is the likeliest (the first of equals)."""
    logits = model.apply({"params": params}, hidden, method="logits", rngs=rngs).astype(jnp.float32)
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    before = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) < targets[..., None]
    above = (logits > right) | ((logits == right) & before)
    return jax.nn.logsumexp(logits, axis=-1) - right[..., 0], ~jnp.any(above, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_gradient(head, hidden, targets, weights):
    return _chunked(lambda h, t: head(h, t, weights), hidden, targets)


def _with_gradient_forward(head, hidden, targets, weights):
    def part(h, t):
        losses, back, right = jax.vjp(lambda h: head(h, t, weights), h, has_aux=True)
        return losses, right, back(jnp.ones_like(losses))[0]

    losses, right, slopes = _chunked(part, hidden, targets)
    return (losses, right), slopes


def _with_gradient_backward(head, slopes, cotangents):
    return slopes * cotangents[0][..., None].astype(slopes.dtype), None, None


_with_gradient.defvjp(_with_gradient_forward, _with_gradient_backward)


def _chunked(function, hidden, targets):
    """function(hidden [B, m, D], targets [B, m]) -> arrays [B, m, ...], over [B, M] in even pieces of at most CHUNK positions."""
    rows, slots = targets.shape
    chunks = -(-slots // max(1, CHUNK // rows))
    if chunks == 1:
        return function(hidden, targets)
    width = -(-slots // chunks)
    pad = chunks * width - slots
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, pad)))
    hidden = jnp.moveaxis(hidden.reshape(rows, chunks, width, -1), 1, 0)
    targets = jnp.moveaxis(targets.reshape(rows, chunks, width), 1, 0)
    parts = jax.lax.map(lambda part: function(*part), (hidden, targets))
    return tuple(jnp.moveaxis(part, 0, 1).reshape(rows, chunks * width, *part.shape[3:])[:, :slots] for part in parts)
