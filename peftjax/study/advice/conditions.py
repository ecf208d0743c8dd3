"""Conditions as data: (field, comparison, value), of what somebody needs or of a candidate.

    ("domains", ">", 1)      ("merging", "=", "forbidden")      ("latency", "given", True)

A field that is None answers no comparison but "given".
"""

import operator
from collections.abc import Sequence
from typing import Any

Condition = tuple[str, str, Any]
COMPARISONS = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "in": lambda value, among: value in among,
}


def holds(condition: Condition, of: Any) -> bool:
    """Whether it holds of something with such a field.

    Raises:
        ValueError: no such comparison.
    """
    field, comparison, value = condition
    found = getattr(of, field)
    if comparison == "given":
        return (found is not None) == value
    if comparison not in COMPARISONS:
        raise ValueError(f"no comparison is called {comparison!r}; there are {', '.join(COMPARISONS)}, given")
    return found is not None and COMPARISONS[comparison](found, value)


def all_hold(conditions: Sequence[Condition], of: Any) -> bool:
    """Whether all of them hold."""
    return all(holds(condition, of) for condition in conditions)


def in_words(conditions: Sequence[Condition]) -> str:
    """`domains > 1 and merging = forbidden`; "always" where there is none."""
    return " and ".join(
        f"{field} is {'given' if value else 'not given'}" if comparison == "given" else f"{field} {comparison} {_word(value)}"
        for field, comparison, value in conditions
    ) or "always"


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
