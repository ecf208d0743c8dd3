"""One adapter out of several, mixed in the space of the weight deltas, and any mergeable adapter as LoRA. Trees in, new trees out.

    before  {... q/kernel: LoRA("tone", a=[L, 4, in], base=LoRA("task", a=[L, 8, in], base=W)), ...}
    after   {... q/kernel: LoRA("merged", a=[L, 12, in], base=W), ...}

    made = blend(params, {"tone": 0.7, "task": 0.3})                                   Σ w ΔW, exact
    made = blend(params, {"tone": 1, "task": 1}, ties(density=0.2), rank=16)           nearest LoRA of rank 16, and how far it is
    made = to_lora(params, "task", tolerance=0.05)                                     whatever method "task" is of
    print(made.certificate)

Every result comes with what it is off by at each kernel of each layer (`peftjax.peft.exactness`). Adapters may be of any mergeable methods,
of any ranks, on different kernels; a bias that comes with a kernel is mixed as a delta of its own. Adapters that rescale (DoRA, IA3) act on
each other's changes when both are in a tree; what is mixed here is what each does to the base alone.
"""

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from peftjax.peft.attach import adapters, detach
from peftjax.peft.changes import Change, Changed, changes
from peftjax.peft.factored import Factors, Matrix, dense
from peftjax.peft.mixing import linear
from peftjax.peft.placed import HEAD, Fit, Made, put_changes

EMBEDDING = "embed/embedding"


def blend(
    params: dict, weights: Mapping[str, float], way: linear = linear(), *, rank: int | None = None,  # noqa: B008 (frozen)
    tolerance: float | None = None, name: str = "merged",
) -> Made:
    """A tree in which one new adapter stands in the place of the named ones; other adapters stay.

    Args:
        params: a tree with the adapters; it stays as it is.
        weights: by name.
        way: of `peftjax.peft.mixing`.
        rank: of the result, at most, at every kernel; the nearest LoRA of that rank.
        tolerance: or the smallest rank at each kernel whose relative error is at most this. Given neither, nothing is lost: low-rank sums
            are LoRA of the rank they have, others are dense.
        name: of the result.

    Raises:
        ValueError: no weights, an unknown name or one that is taken, weights that this way does not take, numbers that are not finite.
        TypeError: an adapter that changes something else than matrices, with the path.
    """
    found = {adapter: changes(params, adapter) for adapter in weights}
    return blend_changes(detach(params, weights), found, weights, way, rank=rank, tolerance=tolerance, name=name)


def blend_changes(
    base: dict, found: Mapping[str, Mapping[str, Changed]], weights: Mapping[str, float], way: linear = linear(), *,  # noqa: B008
    rank: int | None = None, tolerance: float | None = None, name: str = "merged", may_be_dense: bool = True,
) -> Made:
    """The same of adapters that need not fit into one tree: `found` are the `changes` of each. Arguments and errors as of `blend`; without
    `may_be_dense` the result is LoRA whatever rank that takes."""
    if not weights or set(weights) != set(found):
        raise ValueError(f"weights are of {', '.join(weights) or 'none'}, adapters are {', '.join(found) or 'none'}")
    if not all(math.isfinite(weight) for weight in weights.values()):
        raise ValueError(f"weights {dict(weights)} are not finite")
    if name in adapters(base):
        raise ValueError(f"the tree holds an adapter called {name!r}; give the result another name")
    way.check(weights)
    fit = Fit(rank, tolerance, stacks=way.stacks, may_be_dense=may_be_dense)
    return put_changes(base, mixed(found, weights, way), fit, name)


def to_lora(
    params: dict, name: str, rank: int | None = None, *, tolerance: float | None = None, to: str | None = None
) -> Made:
    """A tree in which the adapter is LoRA, called `to` or as before: the nearest of that rank, or of the smallest ranks within the
    tolerance. Given neither, nothing is lost, at whatever rank that takes. Of a LoRA this is how its rank is cut.

    Raises:
        ValueError, TypeError: as of `blend`.
    """
    base, wanted = detach(params, [name]), mixed({name: changes(params, name)}, {name: 1.0}, linear())
    if (to or name) in adapters(base):
        raise ValueError(f"the tree holds an adapter called {to!r}; give the result another name")
    return put_changes(base, wanted, Fit(rank, tolerance), to or name)


def mixed(
    found: Mapping[str, Mapping[str, Changed]], weights: Mapping[str, float], way: linear
) -> dict[str, Callable[[], Change]]:
    """The mixed change of each kernel of each layer, to be read when it is needed."""
    places: dict[str, dict[str, Callable[[], Change]]] = {}
    for adapter, its in found.items():
        for key, changed in its.items():
            places.setdefault(key, {})[adapter] = changed.read
    for adapter, its in found.items():  # a head that is tied to the embedding follows it, also where another adapter has a head of its own
        if HEAD in places and EMBEDDING in its and HEAD not in its:
            places[HEAD][adapter] = functools.partial(_transposed, its[EMBEDDING])
    return {key: functools.partial(_mixed, key, reads, weights, way) for key, reads in places.items()}


def _mixed(key: str, reads: Mapping[str, Callable[[], Change]], weights: Mapping[str, float], way: linear) -> Change:
    there = {adapter: read() for adapter, read in reads.items()}
    for adapter, change in there.items():
        if not change.is_finite():
            raise ValueError(f"{key}: adapter {adapter!r} holds numbers that are not finite; nothing was changed")
    biases = {adapter: change.bias[None] for adapter, change in there.items() if change.bias is not None}
    weight = way({adapter: change.weight for adapter, change in there.items()}, weights, key)
    return Change(weight, _vector(way(biases, weights, f"{key}/bias")) if biases else None)


def _vector(matrix: Matrix) -> np.ndarray:
    return dense(matrix)[0]


def _transposed(changed: Changed) -> Change:
    weight = changed.read().weight
    return Change(Factors(weight.b, weight.a) if isinstance(weight, Factors) else weight.T)
