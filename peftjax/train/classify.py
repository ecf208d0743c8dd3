"""Evaluation of a classifier: loss, accuracy with its interval and macro F1 on held-out texts, and what it said of each.

The loss is the mean negative log-likelihood of the label, in nats a text. A prediction is the likeliest label, as text: every metric of
`peftjax.evals.metrics` applies to it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax.data.batches import eval_batches
from peftjax.evals.classes import macro_f1
from peftjax.evals.metrics import evaluate
from peftjax.peft.partition import combine
from peftjax.train.evaluate import curve_set, require_finite
from peftjax.train.held import Held
from peftjax.train.routes import arrange
from peftjax.train.sharding import to_host


def _nll(log_probabilities: np.ndarray, held: Held) -> np.ndarray:
    """[rows, C] -> of each row's own label [rows]."""
    return -np.take_along_axis(log_probabilities, held.tokens.labels[:, None], axis=1)[:, 0]


class ClassEvaluator:
    """Evaluates parameters of one encoder; the counterpart of `peftjax.train.evaluate.Evaluator`.

    Args:
        model: the encoder.
        labels: names in the order of the logits.
        options: `config.eval`.
        held: rows by name, see `Inputs`.
        length: tokens of a packed row.
        say: is told how far a long evaluation is.
    """

    def __init__(
        self, model: nn.Module, labels: Sequence[str], options: Any, held: dict[str, Held], length: int,
        say: Callable[[str], None] = lambda _: None,
    ):
        self.model, self.labels, self.options, self.held, self.length, self.say = model, list(labels), options, held, length, say
        self._log_probabilities = jax.jit(self._forward)

    def _forward(self, trainable: Any, frozen: Any, batch: Any) -> jax.Array:
        """[B, M, C] float32 at the positions that carry loss."""
        variables = {"params": arrange(combine(trainable, frozen), batch)}
        hidden, _ = self.model.apply(
            variables, batch.tokens, segments=batch.segments, positions=batch.positions, types=batch.types,
            texts=batch.loss_positions.shape[1], method="hidden",
        )
        first = jnp.take_along_axis(hidden, batch.loss_positions[:, :, None], axis=1)
        return jax.nn.log_softmax(self.model.apply(variables, first, method="logits").astype(jnp.float32), axis=-1)

    def log_probabilities(self, name: str, trainable: Any, frozen: Any) -> np.ndarray:
        """[rows, C] of one held-out set. For a tree without adapters `trainable` is `nothing(params)`."""
        rows = self.held[name].tokens
        self.say(f"evaluating: {len(rows)} texts of {name}")
        found = np.zeros((len(rows), len(self.labels)), np.float32)
        for batch in eval_batches(rows, self.options.batch_size, max(self.length, int(rows.lengths.max()))):
            values = to_host(self._log_probabilities(trainable, frozen, batch._replace(rows=None)))
            used = batch.weights > 0
            found[batch.rows[used]] = values[used]
        return found

    def loss(self, name: str, trainable: Any, frozen: Any) -> float:
        """Mean nats a text of one held-out set, and nothing else."""
        return float(_nll(self.log_probabilities(name, trainable, frozen), self.held[name]).mean())

    def run(self, step: int, split: str, trainable: Any, frozen: Any, base_general_loss: float | None = None) -> dict:
        """One evaluation as plain data, as of `Evaluator.run`; a classifier has no general text, and nothing to forget on it.

        Args:
            step: updates done so far.
            split: "validation" or "test": what predictions and metrics are of.
        """
        found: dict[str, Any] = {"step": step, "split": split, "metrics": {}, "predictions": []}
        curve = curve_set(self.options, self.held)
        scores = {name: self.log_probabilities(name, trainable, frozen) for name in sorted({curve, split} & set(self.held))}
        nll = {name: _nll(values, self.held[name]) for name, values in scores.items()}
        if curve in scores:
            found |= {"losses_of": curve, "loss": float(nll[curve].mean())}
        if split in scores:
            found |= {f"{split}_loss": float(nll[split].mean())} | self._predicted(split, scores[split], nll[split])
        require_finite(found)
        return found

    def _predicted(self, split: str, scores: np.ndarray, nll: np.ndarray) -> dict:
        held, numbers = self.held[split], scores.argmax(axis=1)
        texts = [self.labels[number] for number in numbers]
        references = [self.labels[number] for number in held.tokens.labels]
        metrics = evaluate(texts, references, list(self.options.metrics))
        items = [
            {"id": record.id, "group": record.group, "nll": float(loss), "tokens": 1, "prompt": prompt, "reference": reference,
             "prediction": text} | {name: values["per_item"][i] for name, values in metrics.items()}
            for i, (record, loss, prompt, reference, text)
            in enumerate(zip(held.records, nll, held.texts, references, texts, strict=True))
        ]
        overall = {name: {k: v for k, v in values.items() if k != "per_item"} for name, values in metrics.items()}
        return {"predictions": items, "metrics": overall, "macro_f1": macro_f1(texts, references)}
