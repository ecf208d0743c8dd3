"""How far tuned parameters are from their base, in nats a token, on texts that are the same for all of them.

    target        loss on held-out text of the target
    forgetting    loss on general text, less the base's
    kl            KL(base || tuned) of the next token, mean over the tokens of the held-out target text

All three are 0 or the base's own for the untouched base.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.data.batches import eval_batches
from peftjax.data.packing import Batch
from peftjax.interop.base import Base
from peftjax.models.decoder import Decoder
from peftjax.train.inputs import prepare


@functools.partial(jax.jit, static_argnames="model")
def log_probabilities(model: Decoder, params: Any, batch: Batch) -> jax.Array:
    """[B, M, V] of the next token at the positions that carry loss."""
    inputs = {name: getattr(batch, name) for name in ("segments", "positions", "until") if getattr(batch, name) is not None}
    hidden, _ = model.apply({"params": params}, batch.tokens, **inputs, method="hidden")
    hidden = jnp.take_along_axis(hidden, batch.loss_positions[:, :, None], axis=1)
    return jax.nn.log_softmax(model.apply({"params": params}, hidden, method="logits").astype(jnp.float32))


@jax.jit
def sums(logs: jax.Array, of_base: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens, their summed loss, their summed KL from the base) of [B, M, V] log probabilities."""
    nll = -jnp.take_along_axis(logs, batch.targets[..., None], axis=-1)[..., 0]
    kl = jnp.sum(jnp.exp(of_base) * (of_base - logs), axis=-1)
    counted = batch.weights > 0
    return jnp.sum(counted), jnp.sum(nll, where=counted), jnp.sum(kl, where=counted)


class Shift:
    """Measures parameters against a base on the test rows of a run's config and on its general text, or the usual one where it has none.

    Args:
        base: with its tokenizer.
        config: of a run, see `peftjax.train.config`.
    """

    def __init__(self, base: Base, config: Any):
        config = config.copy_and_resolve_references()
        config.eval.general.name = config.eval.general.name or "general"
        held = prepare(config, base.tokenizer).held
        self.text = {name: _batches(held[name].tokens, config) for name in ("test", "general")}
        model = Decoder(base.config)
        self._base = {name: [log_probabilities(model, base.params, batch) for batch in found] for name, found in self.text.items()}
        self.base = {name: self._of(name, self._base[name])[0] for name in self.text}

    def __call__(self, model: Decoder, params: Any) -> dict[str, float]:
        """{"target", "forgetting", "kl"} of parameters."""
        logs = {name: [log_probabilities(model, params, batch) for batch in found] for name, found in self.text.items()}
        target, kl = self._of("test", logs["test"])
        return {"target": target, "forgetting": self._of("general", logs["general"])[0] - self.base["general"], "kl": kl}

    def _of(self, name: str, logs: Sequence[jax.Array]) -> tuple[float, float]:
        """Mean (loss, KL) a token."""
        found = [sums(one, base, batch) for one, base, batch in zip(logs, self._base[name], self.text[name], strict=True)]
        tokens, nll, kl = np.asarray(found, np.float64).sum(axis=0)
        return float(nll / tokens), float(kl / tokens)


def _batches(rows: Any, config: Any) -> list[Batch]:
    length = max(config.data.length, int(rows.lengths.max()))
    return [batch._replace(rows=None) for batch in eval_batches(rows, config.eval.batch_size, length)]
