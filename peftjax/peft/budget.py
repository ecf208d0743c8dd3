"""Ranks and targets under a budget: more rank where the loss asks for it, and none where it does not.

    gains = of_gradients({"blocks/attn/q/kernel": [L, in, out], ...})        or of_covariances({... : [L, in, in]}, widths)
    methods = spend(gains, parameters=200_000)
    (lora(rank=8, targets=("q_proj", ...), rank_pattern={"blocks/7/attn/q": 12, ...}),)

The r-th singular value of a kernel's gradient, squared, is what the r-th row of a LoRA gains of a first step (2407.05000, LoRA-GA, 2024);
the r-th share of the variance of a kernel's input is what a row in that direction sees (2410.07170, EVA, 2024). A row costs in + out
numbers. Rows are bought in the order of gain for a number until the budget is spent. Rows past a layer's own rank, which a stack pads with
zeros, are no parameters: they stay zero and are not stored.
"""

import dataclasses
import heapq
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from peftjax.nn.tree import place
from peftjax.peft.changes import keys
from peftjax.peft.lora import lora
from peftjax.peft.rules import Rule, methods_of


class Gains(NamedTuple):
    """Of one kernel, or of a stack of them. values: what each further row gains, largest first, [L, K] or [K]; shape: (in, out)."""

    values: np.ndarray
    shape: tuple[int, int]


def of_gradients(gradients: Mapping[str, Any]) -> dict[str, Gains]:
    """By path, from gradients of the kernels [L, in, out] or [in, out] (`peftjax.peft.probe` measures them)."""
    found = {}
    for path, gradient in gradients.items():
        gradient = np.asarray(gradient, np.float64)
        across = np.swapaxes(gradient, -1, -2)
        squares = gradient @ across if gradient.shape[-2] <= gradient.shape[-1] else across @ gradient  # of the shorter side
        found[path] = Gains(np.maximum(np.linalg.eigvalsh(squares)[..., ::-1], 0), gradient.shape[-2:])
    return found


def of_covariances(covariances: Mapping[str, Any], widths: Mapping[str, int]) -> dict[str, Gains]:
    """By path, from second moments of the kernels' inputs [L, in, in] or [in, in], and the kernels' outputs; shares of each one's whole."""
    found = {}
    for path, covariance in covariances.items():
        covariance = np.asarray(covariance, np.float64)
        values = np.maximum(np.linalg.eigvalsh(covariance)[..., ::-1], 0)
        whole = values.sum(axis=-1, keepdims=True)
        found[path] = Gains(values / np.where(whole > 0, whole, 1), (covariance.shape[-1], widths[path]))
    return found


def spend(gains: Mapping[str, Gains], *, name: str = "default", settings: Mapping[str, Any] = {}, **budget: Any) -> tuple[lora, ...]:  # noqa: B006
    """The LoRAs that a budget buys, called `name`.

    Args:
        settings: of `lora`, the same for all.
        budget: arguments of `buy`, and errors as there.
    """
    return loras(buy(gains, **budget), layers_of(gains), name, **settings)


def loras(ranks: Mapping[str, int], layers: int, name: str = "default", **settings: Any) -> tuple[lora, ...]:
    """LoRAs of these ranks, by path with the layer's number, on a base of so many layers."""
    methods = methods_of({key: Rule(lora, rank) for key, rank in ranks.items()}, layers, name)
    return tuple(dataclasses.replace(method, **settings) for method in methods)


def layers_of(gains: Mapping[str, Gains]) -> int:
    """How many layers the base has, as far as its kernels' gains say."""
    return max((place(path, len(gain.values)).layers or range(0)).stop for path, gain in gains.items())


def buy(
    gains: Mapping[str, Gains], *, parameters: int | None = None, nbytes: int | None = None, bytes_each: int = 4, max_rank: int = 64,
    cut: bool = False,
) -> dict[str, int]:
    """The ranks that a budget buys, by path with the layer's number, `blocks/7/attn/q/kernel`.

    Args:
        gains: by path of the tree, with all layers.
        parameters, nbytes: the budget, one of the two: numbers in A and B, or their bytes at `bytes_each`.
        max_rank: of any kernel.
        cut: a kernel may be left out on some layers, which cuts the stack there; else it is adapted on all or on none.

    Raises:
        ValueError: no budget or two, or one that buys nothing, with what the cheapest would cost; gains that are not finite.
    """
    if (parameters is None) == (nbytes is None):
        raise ValueError("a budget is of parameters or of nbytes, one of the two")
    left = budget = parameters if parameters is not None else nbytes // bytes_each
    strange = [path for path, gain in gains.items() if not np.isfinite(gain.values).all()]
    if strange or max_rank < 1:
        raise ValueError(f"gains at {', '.join(strange)} are not finite" if strange else f"max_rank {max_rank} is not positive")
    ranks: dict[str, int] = {}
    offers = [_first(path, gain, cut) for path, gain in gains.items()]
    offers = [offer for group in offers for offer in group]
    cheapest = min((offer[3] for offer in offers), default=0)
    heapq.heapify(offers)
    while offers:
        _, _, bought, cost, path = heapq.heappop(offers)
        if cost > left:
            continue  # something that costs less may still fit
        left -= cost
        gain = gains[path]
        for layer, key in bought:
            ranks[key] = rank = ranks.get(key, 0) + 1
            values = gain.values if layer is None else gain.values[layer]
            if rank < min(max_rank, len(values), *gain.shape):
                heapq.heappush(offers, _offer(path, [(layer, key)], float(values[rank]), sum(gain.shape)))
    if not ranks:
        raise ValueError(f"a budget of {budget:,} parameters buys no row anywhere: the cheapest {'row' if cut else 'stack of rows'} takes "
                         f"{cheapest:,}")
    return ranks


def _first(path: str, gain: Gains, cut: bool) -> list[tuple]:
    """Offers of the first row: of each layer, or of all layers together."""
    every = keys(path, len(gain.values))
    if every[0][0] is None:
        return [_offer(path, every, float(gain.values[0]), sum(gain.shape))]
    if cut:
        return [_offer(path, [one], float(gain.values[one[0], 0]), sum(gain.shape)) for one in every]
    return [_offer(path, every, float(gain.values[:, 0].sum()), len(every) * sum(gain.shape))]


def _offer(path: str, bought: list[tuple[int | None, str]], gain: float, cost: int) -> tuple:
    """What a heap sorts by comes first: gain for a number, the largest on top; then the path."""
    return (-gain / cost, bought[0][1], bought, cost, path)
