"""Successive halving (1502.07943, 2015): all points train a little, the better ones go on.

    rungs (50, 100), keep 0.5, 16 points of 200 steps      16 to step 50, the best 8 to 100, the best 4 to the end
                                                           1,600 steps instead of 3,200

At a rung the loss on validation decides; of equals, the earlier point. The others stop. Who went on is a function of the losses that are
stored in the folders, so that a search that was interrupted goes on with the same decisions.
"""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Halving:
    """When members are compared, and how many go on.

    Attributes:
        rungs: steps, ascending.
        keep: the share that goes on at each rung, rounded up; or how many at each.

    Raises:
        ValueError: rungs that do not ascend, or a `keep` that is no share and not one number for each rung.
    """

    rungs: Sequence[int]
    keep: float | Sequence[int] = 0.5

    def __post_init__(self):
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 1:
            raise ValueError(f"the rungs of a halving are steps that ascend; found {tuple(self.rungs)}")
        if isinstance(self.keep, int | float):
            if not 0 < self.keep <= 1:
                raise ValueError(f"a halving keeps a share between 0 and 1, or a number for each rung; found {self.keep}")
        elif len(self.keep) != len(self.rungs) or min(self.keep) < 1:
            raise ValueError(f"a halving keeps a number, 1 or more, for each of its {len(self.rungs)} rungs; found {tuple(self.keep)}")

    def count(self, rung: int, there: int) -> int:
        """How many of `there` members go on at rung number `rung`."""
        return min(there, math.ceil(there * self.keep) if isinstance(self.keep, int | float) else self.keep[rung])

    def survivors(self, rung: int, losses: Sequence[float]) -> list[int]:
        """Numbers of the members that go on, in their order; a loss that is not a number never does."""
        finite = [number for number, loss in enumerate(losses) if math.isfinite(loss)]
        best = sorted(finite, key=lambda number: (losses[number], number))
        return sorted(best[: self.count(rung, len(losses))])
