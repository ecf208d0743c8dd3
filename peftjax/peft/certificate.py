"""What merging into a quantised base costs: measured, said, and held against a budget.

    of each kernel      ‖Q(W + Δ) − (W + Δ)‖ / ‖W + Δ‖, and the same over ‖Δ‖: how much of what was learnt is lost in rounding
    of the model        on a sample of text, unmerged p against requantised q:
                        max and mean |logit change|, and KL(p ‖ q) in nats a token

The sample is given as batches of (tokens [B, T], counted [B, T]), and the model as a function logits(params, tokens) -> [B, T, V].
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

Logits = Callable[[Any, Any], Any]
Sample = Iterable[tuple[Any, Any]]


class Drift(NamedTuple):
    """Of one kernel: the error of its merged weight in its quantised form, relative to that weight and to what the adapters add to it.
    The second is 0 where nothing is added."""

    weight: float
    delta: float


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was measured.

    Attributes:
        kernels: by path, those that were quantised again.
        tokens: of the sample.
        max_logit, mean_logit: largest and mean size of the change of a logit.
        kl: mean KL(unmerged ‖ requantised) of the next token's distribution, in nats a token.
        agreement: fraction of tokens whose likeliest successor is the same.
    """

    kernels: Mapping[str, Drift]
    tokens: int
    max_logit: float
    mean_logit: float
    kl: float
    agreement: float

    def as_data(self) -> dict[str, Any]:
        """For a JSON file."""
        return dataclasses.asdict(self) | {"kernels": {path: drift._asdict() for path, drift in self.kernels.items()}}

    def __str__(self) -> str:
        worst = max(self.kernels, key=lambda path: self.kernels[path].delta, default=None)
        lost = "" if worst is None else f"; {100 * self.kernels[worst].delta:.0f} % of the change at {worst} is lost in rounding, the most"
        return (
            f"KL {self.kl:.4g} nats a token, logits change by {self.mean_logit:.3g} on average and {self.max_logit:.3g} at most, "
            f"{100 * self.agreement:.1f} % of likeliest tokens stay, on {self.tokens} tokens{lost}"
        )


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a merge may cost; None is no bound. kl: nats a token, mean; max_logit: of any logit on the sample."""

    kl: float | None = 0.05
    max_logit: float | None = None

    def require(self, certificate: Certificate) -> None:
        """Raises ValueError if the certificate is above the budget, with what was measured and what to do instead."""
        over = [
            f"{name} {value:.4g} is above the budget of {bound:g}" for name, value, bound in
            (("KL", certificate.kl, self.kl), ("the largest change of a logit", certificate.max_logit, self.max_logit))
            if bound is not None and not value <= bound
        ]
        if over:
            raise ValueError(
                f"merging into the quantised base was refused: {' and '.join(over)}. Measured: {certificate}. Keep the adapter unmerged, "
                "merge into dense weights (merge, or the export form 'merged'), or raise the budget"
            )


USUAL = Budget()


def certify(kernels: Mapping[str, Drift], before: Any, after: Any, logits: Logits, sample: Sample) -> Certificate:
    """Runs the sample through two trees.

    Args:
        kernels: for the certificate.
        before, after: the unmerged and the requantised tree.
        logits: (params, tokens [B, T]) -> [B, T, V].
        sample: batches of (tokens [B, T], counted [B, T] bool).

    Raises:
        ValueError: a sample without tokens.
    """
    tokens, largest, total, kl, same = 0, 0.0, 0.0, 0.0, 0
    for batch, counted in sample:
        for p, q, use in zip(logits(before, batch), logits(after, batch), np.asarray(counted, bool), strict=True):  # a row at a time
            p, q = np.asarray(p, np.float64)[use], np.asarray(q, np.float64)[use]
            if not len(p):
                continue
            change = np.abs(p - q)
            tokens, largest, total = tokens + len(p), max(largest, float(change.max())), total + float(change.mean(axis=-1).sum())
            kl += float(_kl(p, q).sum())
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
    if not tokens:
        raise ValueError("a certificate needs a sample of text; this one holds no token that counts")
    return Certificate(dict(kernels), tokens, largest, total / tokens, kl / tokens, same / tokens)


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Logits [n, V] -> KL(softmax p ‖ softmax q) [n]."""
    p, q = _log_softmax(p), _log_softmax(q)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
