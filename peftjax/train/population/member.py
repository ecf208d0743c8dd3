"""A member of a population: one run with its folder, its data, and its state as it would be alone."""

import dataclasses
from typing import Any

import jax

from peftjax.nn.tree import path_of
from peftjax.train.annealing import Annealing
from peftjax.train.inputs import Inputs
from peftjax.train.journal import Journal
from peftjax.train.optimiser import NUMBERS
from peftjax.train.prepare import Prepared
from peftjax.train.step import TrainState
from peftjax.train.stored import state_arrays


@dataclasses.dataclass(eq=False)
class Member:
    """One run.

    Attributes:
        config, inputs: the run's.
        journal: writes its folder.
        model, dropout, annealing: as of `peftjax.train.prepare.Prepared`.
        trainable: abstract, as a tree.
        own: what of the frozen tree is the member's, None at the base's leaves.
        base: the rest of it, of leaves that all members share.
        arrays: its state as it is stored, by path, without what is frozen; None while it is in the program.
        shapes: theirs.
        step: updates done.
        status: "" while it has steps to take, else "done", "failed" or "stopped"; `error` of a failed one.
    """

    config: Any
    inputs: Inputs
    journal: Journal
    model: Any
    dropout: bool
    annealing: Annealing
    trainable: Any
    own: Any
    base: Any
    arrays: dict[str, jax.Array] | None
    shapes: dict[str, tuple[int, ...]]
    step: int
    status: str = ""
    error: str | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.journal.folder.path.name

    @property
    def numbers(self) -> dict[str, float]:
        """What of its optimiser is data beside the state."""
        return {name: float(self.config.optimizer[name]) for name in NUMBERS}


def waiting(config: Any, inputs: Inputs, journal: Journal, prepared: Prepared, state: TrainState, base: dict[str, jax.Array]) -> Member:
    """A member with the state that it starts or goes on from.

    Args:
        prepared: as it goes with `state`.
        base: the leaves that all members share, by path.
    """
    own = jax.tree.map(lambda mine, leaf: None if mine is None else leaf, prepared.own, prepared.frozen, is_leaf=lambda x: x is None)
    theirs = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: None if leaf is None else base.get(path_of(keys), leaf),
        jax.tree.map(lambda mine, leaf: leaf if mine is None else None, own, prepared.frozen, is_leaf=lambda x: x is None),
    )
    arrays = {path: leaf for path, leaf in state_arrays(state, own).items() if not path.startswith("kept/")}
    abstract = jax.eval_shape(lambda tree: tree, state.trainable)
    shapes = {path: leaf.shape for path, leaf in arrays.items()}
    return Member(
        config, inputs, journal, prepared.model, prepared.dropout, prepared.annealing, abstract, own, theirs, arrays, shapes,
        int(state.step),
    )
