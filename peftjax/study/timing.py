"""Times of several programs in turns, and how many times as long as one of them the others take.

    seconds = in_turns({"base": run, "lora": other}, rounds=30)       {"base": [30], "lora": [30]}
    over(seconds["lora"], seconds["base"])                            Ratio(1.043, 1.031, 1.055)

A round calls every program once, in an order drawn anew; so whatever slows the machine down for a while is in the same rounds of all. A
ratio is the median of the rounds' own ratios, and its interval is of the bootstrap that draws whole rounds (Efron 1979, percentiles), of
several sittings whole sittings first.
How many rounds there are is settled before the first of them counts.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

RESAMPLES = 2000
LEAST = 5  # rounds, however long they take
WIDE = 0.10  # an interval wider than this part of its ratio says too little


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as long: the value, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def kept(self) -> bool:
        """Whether the interval is narrow enough to be told as a result."""
        return self.high - self.low <= WIDE * self.value


@dataclasses.dataclass(frozen=True)
class Spread:
    """Seconds: the median, and the quartiles around it."""

    median: float
    low: float
    high: float


def spread(seconds: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return Spread(float(median), float(low), float(high))


def over(seconds: Sequence[float], base: Sequence[float], seed: int = 0, sittings: Sequence[int] = ()) -> Ratio:
    """How many times as long `seconds` are as `base`, both of the same rounds.

    Args:
        sittings: how many of the rounds, in this order, each sitting had, where there were several. The bootstrap then draws sittings first
            and rounds within them: programs are compiled anew in each, and what sittings differ by no number of rounds tells.

    Raises:
        ValueError: other numbers of rounds, or none.
    """
    if len(seconds) != len(base) or not len(base):
        raise ValueError(f"{len(seconds)} rounds are compared with {len(base)}; both must be of the same rounds, and of one at least")
    ratios, rng = np.asarray(seconds, np.float64) / np.asarray(base, np.float64), np.random.default_rng(seed)
    if len(sittings) > 1:
        parts = np.split(ratios, np.cumsum(sittings)[:-1])
        chosen = rng.integers(0, len(parts), (RESAMPLES, len(parts)))
        medians = [np.median(np.concatenate([rng.choice(parts[one], len(parts[one])) for one in row])) for row in chosen]
    else:
        medians = np.median(ratios[rng.integers(0, len(ratios), (RESAMPLES, len(ratios)))], axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return Ratio(float(np.median(ratios)), float(low), float(high))


def in_turns(
    calls: Mapping[str, Callable[[], float]], rounds: int, budget_s: float = float("inf"), seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each program in each round, after a round that warms up and says how long one takes.

    Args:
        calls: by name what runs once and gives its own seconds.
        rounds: wanted; fewer where they would take longer than `budget_s` in all, at least LEAST.
        seed: of the orders.
    """
    start = clock()
    for call in calls.values():
        call()
    took = max(clock() - start, 1e-9)
    rounds = min(rounds, max(LEAST, int(min(rounds, budget_s / took))))
    order, rng = list(calls), np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in rng.permutation(order).tolist():
            seconds[name].append(calls[name]())
    return seconds
