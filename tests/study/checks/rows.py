"""Rows as runs of a check leave them, with losses that are known: what a verdict is made from."""

import numpy as np


def row(arm: str, rate: float, seed: int, loss: float, validation: float | None = None, losses=None, spread: float = 0.0) -> dict:
    """A run whose test loss is `loss`, over 40 items of ten tokens, two of a group, that differ by `spread`, each in its own way."""
    rng = np.random.default_rng([seed, hash_of(arm)])
    items = loss + spread * (rng.standard_normal(40) - 0.0)
    return {
        "arm": arm, "rate": rate, "seed": seed, "error": None, "losses": list(losses if losses is not None else np.full(30, loss)),
        "validation": loss if validation is None else validation, "test": float(items.mean()), "ids": [f"item-{n}" for n in range(40)],
        "nll": [float(10 * item) for item in items], "tokens": [10] * 40,
        "groups": [f"group-{n // 2}" for n in range(40)], "parameters": 1000 + hash_of(arm), "forgetting": None,
    }


def failed(arm: str, rate: float, seed: int) -> dict:
    """A run that diverged."""
    return {"arm": arm, "rate": rate, "seed": seed, "error": "loss at step 3 is nan"}


def hash_of(text: str) -> int:
    """A number of a text that stays the same from process to process."""
    return sum(text.encode())


def words(finding) -> list[str]:
    """The verdicts of a finding, in their order."""
    return [claim.verdict for claim in finding.claims]
