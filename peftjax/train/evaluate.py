"""Evaluation of a run: loss and perplexity on held-out rows, metrics on generated text, forgetting on general text.

Forgetting is the change of the loss (mean nats a token) on the same general text, against the base without adapters: exactly 0 for the
untouched base, which is what the evaluation before training measures.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from peftjax.data.batches import eval_batches
from peftjax.evals.metrics import evaluate, perplexity
from peftjax.models.decoder import Decoder
from peftjax.models.generate import generate_ids
from peftjax.peft.dora import settle
from peftjax.peft.folded import folded
from peftjax.peft.partition import combine
from peftjax.train.held import Held
from peftjax.train.loss import token_losses
from peftjax.train.routes import arrange, for_rows_of
from peftjax.train.sharding import to_host


@dataclasses.dataclass(frozen=True)
class RowLosses:
    """Per held-out row: summed negative log-likelihood [n] (nats), tokens that carry loss [n], of these rightly predicted [n]."""

    nll: np.ndarray
    tokens: np.ndarray
    right: np.ndarray

    def summary(self) -> dict[str, float]:
        """loss (mean nats a token), perplexity, token_accuracy, and teacher_forced_exact_match: rows with every token right, which for
        greedy decoding is the same as the generated text being right."""
        nll, tokens = float(self.nll.sum()), float(self.tokens.sum())
        return {
            "loss": nll / tokens, "perplexity": perplexity(nll, tokens), "token_accuracy": float(self.right.sum()) / tokens,
            "teacher_forced_exact_match": float(np.mean(self.right == self.tokens)),
        }


@functools.partial(jax.jit, static_argnames="model")
def _losses(model: Decoder, trainable: Any, frozen: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """`token_losses`, compiled once for all evaluators of a model."""
    return token_losses(model, arrange(combine(trainable, frozen), batch), batch)


def curve_set(options: Any, held: Mapping[str, Held]) -> str:
    """The set whose loss is followed over all steps: validation where it is measured at intervals, else the first of those at the end."""
    return "validation" if options.every and "validation" in held else options.at_end[0]


def require_finite(evaluation: Mapping[str, Any]) -> None:
    """FloatingPointError for a loss that is not finite."""
    for name in ("loss", "general_loss"):
        if name in evaluation and not math.isfinite(evaluation[name]):
            raise FloatingPointError(
                f"{name} at step {evaluation['step']} is {evaluation[name]}: training has diverged; lower the learning rate"
            )


class Evaluator:
    """Evaluates parameters of one model.

    Args:
        model: the decoder.
        tokenizer: of the base.
        options: `config.eval`.
        held: rows by name, see `Inputs`.
        length: tokens of a packed row.
        say: is told how far a long evaluation is.
    """

    def __init__(
        self, model: Decoder, tokenizer: Any, options: Any, held: dict[str, Held], length: int, say: Callable[[str], None] = lambda _: None
    ):
        self.model, self.tokenizer, self.options, self.held, self.length, self.say = model, tokenizer, options, held, length, say

    def row_losses(self, name: str, trainable: Any, frozen: Any) -> RowLosses:
        """Losses of every row of one held-out set. For a tree without adapters `trainable` is `nothing(params)`."""
        rows = self.held[name].tokens
        self.say(f"evaluating: losses of {len(rows)} rows of {name}")
        nll, tokens, right = (np.zeros(len(rows)) for _ in range(3))
        for batch in eval_batches(rows, self.options.batch_size, max(self.length, int(rows.lengths.max())), share="auto"):
            losses, hits = to_host(_losses(self.model, trainable, frozen, batch._replace(rows=None)))
            used = batch.weights > 0
            row = batch.rows[used]
            np.add.at(nll, row, losses[used])
            np.add.at(tokens, row, 1)
            np.add.at(right, row, hits[used])
        return RowLosses(nll, tokens, right)

    def loss(self, name: str, trainable: Any, frozen: Any) -> float:
        """Mean nats a token of one held-out set, and nothing else."""
        return self.row_losses(name, trainable, frozen).summary()["loss"]

    def predictions(self, name: str, trainable: Any, frozen: Any) -> list[str]:
        """Greedy answers to the prompts of one held-out set, in the order of its rows."""
        held, params = self.held[name], folded(settle(combine(trainable, frozen)))
        total = len(held.tokens)
        ids = generate_ids(
            self.model, params, held.prompts(), self.tokenizer.eos_id, max_new=self.options.max_new, pad_id=self.tokenizer.pad_id,
            batch_size=self.options.generate_batch_size, vocab=self.tokenizer.vocab_size, for_rows=for_rows_of(held.tokens),
            on_batch=lambda done: self.say(f"evaluating: {done}/{total} answers of {name}"),
        )
        return [self.tokenizer.decode(row).strip() for row in ids]

    def run(self, step: int, split: str, trainable: Any, frozen: Any, base_general_loss: float | None) -> dict:
        """One evaluation as plain data: see `peftjax.train.report` for the fields.

        Args:
            step: updates done so far.
            split: "validation" or "test": what text is generated for.
            base_general_loss: loss of the untouched base on the general text; None where this evaluation is of the base itself.
        """
        found: dict[str, Any] = {"step": step, "split": split, "metrics": {}, "predictions": []}
        curve = curve_set(self.options, self.held)
        rows = {name: self.row_losses(name, trainable, frozen) for name in {curve, split} & set(self.held)}
        if curve in rows:
            found |= {"losses_of": curve} | rows[curve].summary()
        if split in rows:
            found[f"{split}_loss"] = rows[split].summary()["loss"]
            found |= self._generated(split, trainable, frozen, rows[split])
        if "general" in self.held:
            found["general_loss"] = self.row_losses("general", trainable, frozen).summary()["loss"]
            found["forgetting"] = 0.0 if base_general_loss is None else found["general_loss"] - base_general_loss
        require_finite(found)
        return found

    def _generated(self, split: str, trainable: Any, frozen: Any, rows: RowLosses) -> dict:
        held = self.held[split]
        items = [
            {"id": r.id, "group": r.group, "nll": float(n), "tokens": int(t)}
            for r, n, t in zip(held.records, rows.nll, rows.tokens, strict=True)
        ]
        unasked = sum(not text for text in held.texts)
        if self.options.generate and unasked:
            self.say(f"no answers are generated: {unasked} of {len(held.texts)} rows of {split} have no prompt")
        if not self.options.generate or unasked:
            return {"predictions": items}
        texts = self.predictions(split, trainable, frozen)
        references = [(record.response, record.extra.get("aliases", ())) for record in held.records]
        metrics = evaluate(texts, references, list(self.options.metrics))
        for i, (item, record, prompt, text) in enumerate(zip(items, held.records, held.texts, texts, strict=True)):
            item |= {"prompt": prompt, "reference": record.response, "prediction": text}
            item |= {name: found["per_item"][i] for name, found in metrics.items()}
        overall = {name: {k: v for k, v in found.items() if k != "per_item"} for name, found in metrics.items()}
        return {"predictions": items, "metrics": overall}
