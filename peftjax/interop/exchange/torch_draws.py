"""What torch's CPU generator draws from a seed, for files that hold a seed in the place of random constants.

    draws = Draws(seed)                          torch.Generator().manual_seed(seed)
    draws.uniform(-b, b, (R, n))                 torch.empty(R, n).uniform_(-b, b, generator=...), float32

The generator is the Mersenne Twister (mt19937), whose 32-bit words numpy gives too. A float32 takes the low 24 bits of one word. Read in
torch 2.13's DistributionsHelper.h; permutations are drawn by `peftjax.peft.fourierft.shuffled`.
"""

import math
from collections.abc import Sequence

import numpy as np


class Draws:
    """The words of one seed, one after another."""

    def __init__(self, seed: int):
        self._words = np.random.RandomState(seed)

    def _take(self, count: int) -> np.ndarray:
        return self._words.randint(0, 2**32, count, dtype=np.uint32)

    def uniform(self, low: float, high: float, shape: Sequence[int]) -> np.ndarray:
        """float32 [*shape] in [low, high)."""
        unit = (self._take(math.prod(shape)) & 0xFFFFFF).astype(np.float64) * 2.0**-24  # torch computes in double precision
        low, high = np.float32(low), np.float32(high)
        return (unit * np.float64(high - low) + np.float64(low)).astype(np.float32).reshape(shape)
