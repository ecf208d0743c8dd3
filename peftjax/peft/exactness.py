"""How far a weight delta that was made is from the one that was asked for: measured at every kernel of every layer.

    error = ‖made − asked‖ / ‖asked‖, Frobenius norms, in float64

A sum of low-rank deltas at full rank is off by the rounding of float32 factors, some 1e-8; a truncated one by what was cut off.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

ROUNDING = 1e-6  # an error below this is the rounding of float32


class Error(NamedTuple):
    """Of one kernel of one layer. relative: the error; size: ‖asked‖; rank: of what was made, None where it is dense."""

    relative: float
    size: float
    rank: int | None


@dataclasses.dataclass(frozen=True)
class Exactness:
    """What was measured. kernels: by path with the layer's number."""

    kernels: Mapping[str, Error]

    @property
    def total(self) -> float:
        """The error over all kernels together, as of one long vector."""
        size = math.sqrt(sum(error.size**2 for error in self.kernels.values()))
        return math.sqrt(sum((error.relative * error.size) ** 2 for error in self.kernels.values())) / size if size else 0.0

    @property
    def worst(self) -> str:
        """Where the error is largest."""
        return max(self.kernels, key=lambda key: self.kernels[key].relative)

    @property
    def is_exact(self) -> bool:
        """Whether nothing but rounding is lost anywhere."""
        return self.kernels[self.worst].relative <= ROUNDING

    def as_data(self) -> dict[str, Any]:
        """For a JSON file."""
        return {"exact": self.is_exact, "total": self.total, "kernels": {key: error._asdict() for key, error in self.kernels.items()}}

    def __str__(self) -> str:
        ranks = [error.rank for error in self.kernels.values() if error.rank is not None]
        form = f"ranks {min(ranks)} to {max(ranks)}" if ranks else "dense"
        if ranks and len(ranks) < len(self.kernels):
            form += f", {len(self.kernels) - len(ranks)} kernels dense"
        if self.is_exact:
            return f"exact to rounding ({self.total:.2g}) at {len(self.kernels)} kernels; {form}"
        return (
            f"not exact: {100 * self.total:.3g} % of the norm of what was asked is lost, {100 * self.kernels[self.worst].relative:.3g} % "
            f"at {self.worst}, the most of {len(self.kernels)} kernels; {form}"
        )

    def require(self, tolerance: float) -> None:
        """Raises ValueError if more than `tolerance` of the whole is lost, with what was measured."""
        if not self.total <= tolerance:
            raise ValueError(f"an error of {self.total:.4g} is above the {tolerance:g} that is allowed. {self}. Give more rank, or none")
