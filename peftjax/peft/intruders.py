"""Intruder dimensions: directions among the strongest of a tuned weight that the base has nowhere (2410.21228, 2024).

    W + ΔW = Σ σⱼ uⱼ vⱼᵀ,  W = Σ sᵢ xᵢ yᵢᵀ          j is an intruder if j < top and maxᵢ |vⱼ · yᵢ| < threshold

v and y are directions of the output, as in the paper and in HF PEFT. A cosine says little by itself: any direction at random is below 0.5
of all those of a wide weight (0.138 on average at a width of 576). So the same is measured with two controls: directions at random, and a
delta of the same singular values in random directions. `reduce_intruders` scales them down, and says how much of the delta went, so that an
arm of the same norm can be run beside it (`shrunk`).
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from peftjax.peft.attach import detach
from peftjax.peft.changes import Change, Changed, changes
from peftjax.peft.factored import Factors, Matrix, dense, norm, scaled, spectrum, total
from peftjax.peft.placed import Fit, Made, put_changes

CONTROLS = ("adapter", "same spectrum", "directions")


class Overlap(NamedTuple):
    """Of the strongest directions of a tuned weight. cosines: the largest |cosine| of each with any of the base's [top]; values: their
    singular values [top]; left, right: the directions [top, in], [top, out]."""

    cosines: np.ndarray
    values: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def intruders(self, threshold: float) -> np.ndarray:
        """Which are, as indices."""
        return np.flatnonzero(self.cosines < threshold)


class Intruders(NamedTuple):
    """At one kernel of one layer: how many of the adapter, of a delta of its spectrum in random directions, and of random directions alone;
    and the mean of their largest cosines, in the order of CONTROLS."""

    counts: tuple[int, int, int]
    cosines: tuple[float, float, float]


def overlap(weight: np.ndarray, delta: Matrix, top: int) -> Overlap:
    """What a delta makes of the strongest directions of a weight [in, out]."""
    base, tuned = spectrum(weight), spectrum(weight + dense(delta))
    cosines = np.abs(tuned.right[:top] @ base.right.T).max(axis=1)
    return Overlap(cosines, tuned.values[:top], tuned.left[:top], tuned.right[:top])


def same_spectrum(delta: Matrix, seed: str) -> Factors:
    """A delta of the same singular values in directions at random."""
    found, draw = spectrum(delta), _draw(seed)
    left, right = (np.linalg.qr(draw.standard_normal((side.shape[1], len(side))))[0].T for side in (found.left, found.right))
    return Factors(found.values[:, None] * left, right)


def find_intruders(params: dict, name: str, *, top: int = 10, threshold: float = 0.5, seed: int = 0) -> dict[str, Intruders]:
    """How many dimensions an adapter adds, with the controls, by path with the layer's number.

    Raises:
        ValueError, TypeError: as of `peftjax.peft.changes.changes`.
    """
    found = {}
    for key, changed in changes(params, name).items():
        weight, delta = _weight(changed), changed.read().weight
        random = _draw(f"{seed}/{key}/directions").standard_normal((min(top, *weight.shape), weight.shape[1]))
        random = random / np.linalg.norm(random, axis=1, keepdims=True)
        cosines = (
            overlap(weight, delta, top).cosines,
            overlap(weight, same_spectrum(delta, f"{seed}/{key}"), top).cosines,
            np.abs(random @ spectrum(weight).right.T).max(axis=1),
        )
        found[key] = Intruders(tuple(int(np.sum(c < threshold)) for c in cosines), tuple(float(c.mean()) for c in cosines))
    return found


def reduce_intruders(
    params: dict, name: str, *, keep: float = 0.75, top: int = 10, threshold: float = 0.5, rank: int | None = None
) -> Made:
    """A tree in which what the intruders add is scaled by `keep`: ΔW − (1 − keep) Σ σⱼ uⱼ vⱼᵀ over them, as LoRA.

    Args:
        rank: of the result; None for exactly this, at a rank that is higher by the number of intruders.

    Raises:
        ValueError, TypeError: as of `to_lora`.
    """
    def reduced(changed: Changed) -> Change:
        change = changed.read()
        found = overlap(_weight(changed), change.weight, top)
        which = found.intruders(threshold)
        part = Factors(found.values[which, None] * found.left[which], found.right[which])
        return change._replace(weight=total([change.weight, part], [1.0, keep - 1.0]))

    wanted = {key: (lambda changed=changed: reduced(changed)) for key, changed in changes(params, name).items()}
    return put_changes(detach(params, [name]), wanted, Fit(rank), name)


def shrunk(params: dict, name: str, like: Mapping[str, float]) -> Made:
    """The control arm: a tree in which each change is scaled to the norm that `like` gives for its key, its directions as they were. Of a
    reduction these are `{key: error.size for key, error in made.certificate.kernels.items()}`."""
    def scaled_to(key: str, changed: Changed) -> Change:
        change = changed.read()
        size = norm(change.weight)
        factor = like[key] / size if size else 1.0
        return Change(scaled(change.weight, factor), None if change.bias is None else factor * change.bias)

    wanted = {key: (lambda key=key, changed=changed: scaled_to(key, changed)) for key, changed in changes(params, name).items()}
    return put_changes(detach(params, [name]), wanted, Fit(), name)


def _weight(changed: Changed) -> np.ndarray:
    """The weight under a change, [in, out] float64."""
    return np.asarray(changed.weight(), np.float64)


def _draw(seed: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
