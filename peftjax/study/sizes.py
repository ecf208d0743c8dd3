"""The size of a method, its rank or its bottleneck, and the one that meets a budget.

    fitted = fit(lambda size: parameters(base, with_size(methods, size)), budget=20_000)
    fitted.size, fitted.cost, fitted.deviation              12, 20_736, +0.037

Costs grow with the size, so the size nearest to the budget is found by doubling and halving.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from peftjax.interop.base import Base
from peftjax.models.decoder import cut
from peftjax.peft.attach import attach
from peftjax.peft.partition import partition
from peftjax.peft.partition import size as size_of
from peftjax.peft.spec import from_data
from peftjax.train.prepare import segments_of

FIELDS = ("rank", "size")
MOST = 1 << 16


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The size nearest to a budget, its cost, and how far that is off, as a signed share of the budget."""

    size: int
    cost: float
    deviation: float


def sized(specifications: Sequence[Any], name: str = "the method") -> tuple[int, str]:
    """(place, field) of the one method that has a rank or a size.

    Raises:
        ValueError: none has one, or several have.
    """
    found = [(place, field) for place, method in enumerate(specifications) for field in FIELDS if field in method]
    if len(found) != 1:
        kinds = ", ".join(f"{method['method']}" for method in specifications)
        raise ValueError(f"{name} ({kinds}) has {len(found)} ranks or sizes; a budget sets one. Match it by time, which leaves sizes alone")
    return found[0]


def with_size(specifications: Sequence[Any], size: int) -> list[ConfigDict]:
    """The methods with their rank or size set."""
    place, field = sized(specifications)
    changed = [ConfigDict(dict(method.items())) for method in specifications]
    changed[place][field] = size
    return changed


def parameters(base: Base, specifications: Sequence[ConfigDict], segments: str = "auto") -> int:
    """How many numbers the methods train on a base; nothing is allocated."""
    methods = [from_data(method.to_dict()) for method in specifications]
    lengths = segments_of(segments, methods, base.config.layers)

    def trainable(params):
        return partition(attach(cut(params, base.config, lengths), methods, jax.random.key(0)))[0]

    return size_of(jax.eval_shape(trainable, base.params))[0]


def fit(cost: Callable[[int], float], budget: float) -> Fitted:
    """The size whose cost is nearest to the budget; of two as near, the smaller.

    Raises:
        ValueError: no size up to 65,536 costs as much.
    """
    known: dict[int, float] = {}

    def at(size: int) -> float:
        if size not in known:
            known[size] = cost(size)
        return known[size]

    low = high = 1
    while at(high) < budget:
        low, high = high, 2 * high
        if high > MOST:
            raise ValueError(f"a size of {low} costs {at(low):g}, and the budget is {budget:g}: no size reaches it")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < budget else (low, middle)
    best = min((low, high), key=lambda size: (abs(at(size) - budget), size))
    return Fitted(best, at(best), at(best) / budget - 1)
