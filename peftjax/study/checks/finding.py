"""What a check found: claims with their verdicts, tables, and lines to draw. Plain data, made from measurements by a pure function.

    Finding(claims=(Claim("merged = unmerged", "max |logit| <= 1e-4", "2.3e-5", HOLDS),), tables=(...), plot=Plot(...))
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

HOLDS, FAILS, TIE, OPEN, REPORTED = "holds", "does not hold", "a tie", "not told apart", "reported"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A prediction.

    Attributes:
        what: is claimed.
        predicted: as it was written down before.
        measured: in words and numbers.
        verdict: HOLDS, FAILS (not reproduced at this scale), TIE (shown to be within the region of equivalence), OPEN (neither a
            difference nor a tie was shown), or REPORTED (nothing was asserted).
    """

    what: str
    predicted: str
    measured: str
    verdict: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of numbers and words under a header, with a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Plot:
    """Lines, or points where `joined` is False. series: name -> (x, y) or (x, y, low, high); what is not finite is left out."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], ...]]
    log_x: bool = False
    log_y: bool = False
    joined: bool = True


@dataclasses.dataclass(frozen=True)
class Finding:
    """All of it; `setting` says on what: base, seeds, steps."""

    setting: str
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    plot: Plot | None = None


def within(value: float, low: float, high: float) -> str:
    """HOLDS inside [low, high], else FAILS."""
    return HOLDS if low <= value <= high else FAILS
