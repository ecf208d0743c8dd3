"""The loss: cross-entropy at the positions that carry it, of the next token of a response or of the label of a text.

Hidden states are taken at the positions that carry loss before the head is applied, and the head works in chunks, so that logits of
prompts and padding are never computed and [tokens, V] is never whole in memory.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

CHUNK = 512  # positions whose logits are alive at once: 100 MB in float32 at a vocabulary of 49152


def token_losses(model: nn.Module, params: Any, batch: Any, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Per position that carries loss: (negative log-likelihood [B, M] float32, whether the likeliest token is the right one [B, M] bool).

    `batch` has tokens, segments, positions [B, T], types [B, T] or None, and loss_positions, targets [B, M]; `key` switches dropout on.
    `model` is a decoder or an encoder.
    """
    rngs = None if key is None else {"dropout": key}
    variables = {"params": params}
    inputs = {"segments": batch.segments, "positions": batch.positions} | ({} if batch.types is None else {"types": batch.types})
    hidden, _ = model.apply(variables, batch.tokens, **inputs, method="hidden", rngs=rngs)
    rows, slots = batch.loss_positions.shape
    hidden = jnp.take_along_axis(hidden, batch.loss_positions[:, :, None], axis=1)

    def head(h, targets):
        logits = model.apply(variables, h, method="logits", rngs=rngs).astype(jnp.float32)
        right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - right, jnp.argmax(logits, axis=-1) == targets

    width = max(1, CHUNK // rows)
    if slots <= width:
        return head(hidden, batch.targets)
    chunks = -(-slots // width)
    pad = chunks * width - slots
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(batch.targets, ((0, 0), (0, pad)))
    hidden = jnp.moveaxis(hidden.reshape(rows, chunks, width, -1), 1, 0)
    targets = jnp.moveaxis(targets.reshape(rows, chunks, width), 1, 0)
    losses = jax.lax.map(lambda part: jax.checkpoint(head, prevent_cse=False)(*part), (hidden, targets))
    return tuple(jnp.moveaxis(part, 0, 1).reshape(rows, -1)[:, :slots] for part in losses)
