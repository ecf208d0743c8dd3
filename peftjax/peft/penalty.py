"""Penalties: what a method adds to the loss by the values of its own trainables, whatever the batch.

    loss = sum of token losses / tokens + Σ node.penalty()

A node or an entry that has one defines `penalty() -> scalar`, of one layer or, with a leading L, of a stack of layers: the sum over them.
AdapterFusion keeps its value matrix near the identity so (2005.00247, 2020), AdaLoRA its factors near orthogonal (2303.10512, 2023).
"""

from collections.abc import Iterator
from typing import Any

import jax

from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.shared import unshared
from peftjax.nn.tree import walk


def penalty(params: dict) -> jax.Array | None:
    """The sum of all nodes' penalties, a float32 scalar; None where no node has one, so that nothing is computed."""
    own = [node.penalty() for _, value in walk(unshared(params)) for node in nodes(value) if hasattr(node, "penalty")]
    return sum(own[1:], start=own[0]) if own else None


def nodes(value: Any) -> Iterator[Any]:
    """A node or an entry, and every one inside it."""
    if isinstance(value, Kernel | Entry):
        yield value
        for field in value.array_fields:
            yield from nodes(getattr(value, field))
    elif isinstance(value, dict):
        for child in value.values():
            yield from nodes(child)
