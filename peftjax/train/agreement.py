"""Training side by side with another library: the same base, initial adapter, batches and AdamW, compared loss by loss.

A peer (scripts/peers) leaves a folder a method:

    initial/      the adapter before the first step, in the peer's own format
    losses.npz    batches [steps, B, T] token ids; learning_rate, weight_decay [runs]; betas [2]; eps
                  losses [runs, steps]: before each step, mean next-token cross-entropy over all B x (T-1) predicted positions

Ours starts from initial/ and takes the same steps: AdamW (Loshchilov and Hutter, 2019) on everything the adapter trains, float32. As in the
peers *all* of it decays, biases too; runs of this library spare them (`peftjax.train.optimiser`), so the optimiser here is optax's own.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from peftjax.data.packing import Batch
from peftjax.interop.base import Base
from peftjax.interop.exchange.load import load_adapter
from peftjax.models.decoder import Decoder
from peftjax.peft import partition
from peftjax.train.step import make_step, new_state

TOLERANCE = 1e-4  # relative, at every step


@dataclasses.dataclass(frozen=True)
class Agreement:
    """One run of one method: losses [steps] of both sides, in nats a token."""

    method: str
    learning_rate: float
    weight_decay: float
    ours: np.ndarray
    theirs: np.ndarray

    @property
    def difference(self) -> float:
        """The largest relative difference of a loss."""
        return float(np.max(np.abs(self.ours / self.theirs - 1)))


def compare(folder: str | Path, base: Base) -> list[Agreement]:
    """Trains the method of a peer's folder as the peer did, once a run.

    Args:
        base: what the peer trained on, float32.

    Raises:
        FileNotFoundError, ValueError: as `peftjax.interop.exchange.load.load_adapter`.
    """
    folder = Path(folder)
    adapted = load_adapter(folder / "initial", base)
    model = Decoder(base.config, segments=adapted.segments)
    with np.load(folder / "losses.npz") as peer:
        runs = list(zip(peer["learning_rate"].tolist(), peer["weight_decay"].tolist(), strict=True))
        b1, b2 = peer["betas"].tolist()
        ours = train(model, adapted.params, peer["batches"], runs, b1=b1, b2=b2, eps=float(peer["eps"]))
        return [Agreement(folder.name, *run, *losses) for run, *losses in zip(runs, ours, peer["losses"], strict=True)]


def train(model: Decoder, params: dict, batches: np.ndarray, runs: Sequence[tuple[float, float]], **adamw: float) -> np.ndarray:
    """Losses [runs, steps] float64 of one AdamW step a batch, every run from the same values.

    Args:
        params: a base with an adapter on it, cut as the model is.
        batches: int32 [steps, B, T].
        runs: (learning rate, weight decay).
        adamw: b1, b2, eps.
    """
    trainable, frozen = partition(params)
    optimisers = [optax.inject_hyperparams(optax.adamw)(learning_rate=rate, weight_decay=decay, **adamw) for rate, decay in runs]
    step = jax.jit(make_step(model, optimisers[0]))  # rate and decay lie in the state: one compilation serves every run
    losses = np.zeros((len(runs), len(batches)))
    for run, optimiser in enumerate(optimisers):
        state = new_state(trainable, optimiser, jax.random.key(0))
        for number, tokens in enumerate(batches):
            state, metrics = step(state, frozen, next_tokens(tokens))
            losses[run, number] = metrics["loss"]
    return losses


def next_tokens(tokens: np.ndarray) -> Batch:
    """Texts [B, T] as a batch in which each token but the first is predicted."""
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    grid = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy()
    ones = np.ones((rows, length), np.int32)
    return Batch(
        tokens=tokens[:, :-1], segments=ones, positions=grid, loss_positions=grid, targets=tokens[:, 1:], weights=ones.astype(np.float32)
    )


def as_table(rows: Sequence[tuple[str, Agreement]]) -> str:
    """(library, run) pairs as a Markdown table."""
    lines = ["| method | library | steps | largest difference | first loss | last loss | theirs |", "|---|---|--:|--:|--:|--:|--:|"]
    for library, run in rows:
        first, last, theirs = (f"{loss:.5f}" for loss in (run.ours[0], run.ours[-1], run.theirs[-1]))
        lines.append(f"| {run.method} | {library} | {len(run.ours)} | {run.difference:.1e} | {first} | {last} | {theirs} |")
    return "\n".join(lines)
