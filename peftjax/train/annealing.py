"""Activation annealing along a run: how linear a bottleneck is follows from the step alone (`peftjax.peft.anneal`).

    houlsby(size=64, anneal=(0.2, 0.8))         t is 0 for the first fifth of the steps, 1 for the last, and rises evenly between

    t(step) = clip((step / steps - begin) / (end - begin), 0, 1)            step: updates done

A run that was stopped goes on as if it had not been, and what it stores is annealed as far as it is then: what all of its steps end with
merges, what patience or a halving ends before need not. An adapter that a run begins with stays as far annealed as it was.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.peft.across_layers import across_layers
from peftjax.peft.anneal import anneal
from peftjax.peft.bottleneck import bottleneck


@dataclasses.dataclass(frozen=True)
class Annealing:
    """What of the frozen half follows the step. spans: (name of an adapter, begin, end) each; steps: of the run."""

    spans: tuple[tuple[str, float, float], ...]
    steps: int

    def __call__(self, frozen: Any, step: int | jax.Array) -> Any:
        """The frozen half, or a part of it, as it is after `step` updates, which may be traced."""
        for name, begin, end in self.spans:
            t = jnp.clip((step / self.steps - begin) / (end - begin), 0, 1)
            frozen = anneal(frozen, t, [name])
        return frozen


def annealing(methods: Sequence[Any], steps: int) -> Annealing:
    """That of a run of so many steps with these methods; of most of them nothing follows the step.

    Raises:
        ValueError: bottlenecks of one adapter that state different spans.
    """
    found: dict[str, Any] = {}
    for method in methods:
        of = method.of if isinstance(method, across_layers) else method
        if isinstance(of, bottleneck) and of.anneal and found.setdefault(method.name, of.anneal) != of.anneal:
            raise ValueError(f"bottlenecks of {method.name!r} are annealed over {found[method.name]} and {of.anneal}; state one span, "
                             "or give one of them another name")
    return Annealing(tuple((name, *span) for name, span in found.items() if isinstance(span, tuple)), steps)
