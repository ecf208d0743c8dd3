"""The weight that a plan of adapters is, where it is one: adapters merged one after another, and means of what they make.

    Stack: W -> W' -> W''            Average: W -> Σ w_i W_i            what tells rows, positions or tokens apart: no one weight

Biases that adapters add, and what they make of the bias beside a weight, go the same way.
"""

import dataclasses
from typing import Any

import jax

from peftjax.nn.kernels import Kernel, dot, node
from peftjax.peft.composition import Average, Composition, Fuse, Stack
from peftjax.peft.outcomes import on


@node(arrays=("base", "own", "beside", "bare"))
@dataclasses.dataclass(frozen=True)
class Folded(Kernel):
    """A dense weight that adapters were merged into, float32 (None: nothing yet), with the bias that they add, what they made of the bias
    beside it, and the weight as it was before. It is the base of what is merged next."""

    base: Any
    own: jax.Array | None
    beside: jax.Array | None
    bare: Any

    def dot(self, x, key=None):
        return dot(x, self.base, key)

    def merge(self):
        return self.base

    def merged_bias(self):
        return self.own

    def changed_bias(self, bias):
        return bias if self.beside is None else self.beside

    @property
    def shape(self):
        return self.base.shape

    @property
    def dtype(self):
        return self.base.dtype


def fold(plan: Composition | None, here: Any, below: Folded, biases: bool = False) -> Folded:
    """What a plan makes of a weight, merged; only of biases, where these are asked for."""
    if plan is None:
        return below
    if isinstance(plan, str):
        part = on(here.parts[plan], None if below.base is None else below)
        weight = below.base if biases else part.merge()
        beside = None if below.beside is None else part.changed_bias(below.beside)
        return Folded(weight, part.merged_bias() if below.base is not None else None, beside, below.bare)
    if isinstance(plan, Stack):
        for child in plan.children:
            below = fold(child, here, below, biases)
        return below
    if not isinstance(plan, Average):
        raise TypeError(f"{type(plan).__name__} of {', '.join(here.parts)} is no one weight: {_NO_WEIGHT[isinstance(plan, Fuse)]}")
    weights = here.weights[plan.weights]
    each = [fold(child, here, below, biases) for child in plan.children]

    def mean(values):
        there = [(weights[..., i], value) for i, value in enumerate(values) if value is not None]
        scaled = [value * weight.reshape(*weight.shape, *(1,) * (value.ndim - weight.ndim)) for weight, value in there]
        return sum(scaled[1:], start=scaled[0]) if scaled else None

    weight = below.base if biases else mean([one.base for one in each])
    return Folded(weight, mean([one.own for one in each]), mean([one.beside for one in each]), below.bare)


_NO_WEIGHT = (
    "it depends on the row or the position; merge the tree of one of them (activate on decompose(params))",
    "attention weighs what they do token by token",
)
