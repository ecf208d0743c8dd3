"""Ways to make one weight delta of several. Each is a pure function of the deltas themselves, never of their factors apart: the product of
summed factors is not the sum of products, (A₁ + A₂)ᵀ(B₁ + B₂) ≠ A₁ᵀB₁ + A₂ᵀB₂.

| way | delta | of low-rank deltas |
|---|---|---|
| linear (task arithmetic, 2212.04089, 2022) | Σ w Δ | of low rank, exact |
| cat | Σ w Δ, factors stacked as they are | of low rank, exact |
| slerp (Shoemake, 1985) | sin((1-t)Ω)/sin Ω Δ₁ + sin(tΩ)/sin Ω Δ₂, Ω the angle between them | of low rank, exact |
| prune | Σ w top(Δ), the entries of largest magnitude | dense |
| ties (2306.01708, 2023) | mean of w top(Δ) over those with the elected sign | dense |
| dare (2311.03099, 2023) | Σ w drop(Δ) / density, or with `elect` the mean as in ties | dense |

    mixed = ties(density=0.2)({"tone": delta, "task": other}, {"tone": 1.0, "task": 1.0}, "blocks/7/attn/q/kernel")

Deltas are `peftjax.peft.factored.Matrix`; what an adapter does not change at a place is left out there. Means and signs are those of HF
PEFT: signs are elected before weighting, and the mean is over the number that agree.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping

import numpy as np

from peftjax.peft.bounds import require_known
from peftjax.peft.factored import Matrix, dense, inner, norm, total

ELECTIONS = ("total", "frequency")


@dataclasses.dataclass(frozen=True)
class linear:  # noqa: N801 (read as `linear()`, as methods are)
    """Σ w Δ."""

    stacks = False  # whether the factors are wanted as they are

    means = False  # whether it takes a mean, so that weights of 1 are the usual ones

    def usual(self, count: int) -> list[float]:
        """Weights of so many adapters where none are given: equal shares of 1, of a mean and of one alone 1 each."""
        return [1.0 if self.means else 1 / count] * count

    def check(self, weights: Mapping[str, float]) -> None:
        """Raises ValueError if these weights mean nothing here."""

    def __call__(self, deltas: Mapping[str, Matrix], weights: Mapping[str, float], place: str) -> Matrix:
        """One delta of some.

        Args:
            deltas: by adapter, of one shape, at least one.
            weights: by adapter.
            place: where they are, which randomness depends on.
        """
        return total(list(deltas.values()), [weights[name] for name in deltas])


@dataclasses.dataclass(frozen=True)
class cat(linear):  # noqa: N801
    """Σ w Δ whose factors are those of the adapters, one after the other: the rank is the sum of theirs."""

    stacks = True


@dataclasses.dataclass(frozen=True)
class slerp(linear):  # noqa: N801
    """From one delta to another along the sphere: two adapters with weights 1 - t and t. Where the angle is too small to divide by, or one
    of the two changes nothing, the straight line."""

    def check(self, weights):
        values = list(weights.values())
        if len(values) != 2 or not math.isclose(sum(values), 1) or min(values) < 0:
            raise ValueError(f"slerp goes from one adapter to another, with weights 1 - t and t between 0 and 1; these are {dict(weights)}")

    def __call__(self, deltas, weights, place):
        if len(deltas) == 2:
            one, other = deltas.values()
            sizes = norm(one) * norm(other)
            angle = math.acos(min(1.0, max(-1.0, inner(one, other) / sizes))) if sizes else 0.0
            if 1e-3 < angle < math.pi - 1e-3:
                weights = {name: math.sin(weights[name] * angle) / math.sin(angle) for name in deltas}
        return super().__call__(deltas, weights, place)


@dataclasses.dataclass(frozen=True)
class prune(linear):  # noqa: N801
    """Σ w Δ of the `density` · in · out entries of largest magnitude of each."""

    density: float = 0.2

    def __post_init__(self):
        if not 0 < self.density <= 1:
            raise ValueError(f"{type(self).__name__} density {self.density} is not in (0, 1]")

    def __call__(self, deltas, weights, place):
        return super().__call__(self._thinned(deltas, place), weights, place)

    def _thinned(self, deltas: Mapping[str, Matrix], place: str) -> dict[str, np.ndarray]:
        return {name: largest(dense(delta), self.density) for name, delta in deltas.items()}


@dataclasses.dataclass(frozen=True)
class ties(prune):  # noqa: N801
    """Trim, elect a sign, and take the mean of those that have it.

    Attributes:
        density: fraction of the entries of each that is kept.
        election: the sign is that of the sum of values ("total") or of signs ("frequency").
    """

    election: str = "total"
    means = True

    def __post_init__(self):
        super().__post_init__()
        require_known("ties", "election", self.election, ELECTIONS)

    def __call__(self, deltas, weights, place):
        return agreed(self._thinned(deltas, place), weights, self.election)


@dataclasses.dataclass(frozen=True)
class dare(ties):  # noqa: N801
    """Drop entries at random and rescale the rest.

    Attributes:
        density: probability that an entry is kept.
        seed: of what is dropped; it depends on nothing else but the place and the adapter's name.
        elect: take the mean of those that have the elected sign, as ties does, instead of the sum.
    """

    seed: int = 0
    elect: bool = False

    @property
    def means(self) -> bool:
        return self.elect

    def __call__(self, deltas, weights, place):
        thinned = self._thinned(deltas, place)
        return agreed(thinned, weights, self.election) if self.elect else linear()(thinned, weights, place)

    def _thinned(self, deltas, place):
        return {name: dropped(dense(delta), self.density, f"{self.seed}/{place}/{name}") for name, delta in deltas.items()}


WAYS = {"linear": linear, "cat": cat, "slerp": slerp, "prune": prune, "ties": ties, "dare": dare}


def largest(values: np.ndarray, density: float) -> np.ndarray:
    """The int(density · size) entries of largest magnitude, all others zero."""
    count = int(density * values.size)
    if count >= values.size:
        return values
    kept = np.zeros(values.size, values.dtype)
    if count:
        chosen = np.argpartition(np.abs(values), values.size - count, axis=None)[-count:]
        kept[chosen] = values.reshape(-1)[chosen]
    return kept.reshape(values.shape)


def dropped(values: np.ndarray, density: float, seed: str) -> np.ndarray:
    """Each entry kept with probability `density` and divided by it, else zero."""
    draw = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    return np.where(draw.random(values.shape) < density, values / density, 0.0)


def agreed(deltas: Mapping[str, np.ndarray], weights: Mapping[str, float], election: str) -> np.ndarray:
    """Entry by entry the mean of w Δ over the deltas that have the elected sign; zero where none has."""
    stacked = np.stack(list(deltas.values()))
    signs = np.sign(stacked)
    elected = np.where((stacked if election == "total" else signs).sum(axis=0) >= 0, 1, -1)
    agrees = signs == elected
    weighted = np.stack([weights[name] * delta for name, delta in deltas.items()])
    return np.where(agrees, weighted, 0).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1)
