"""Bounds of hyper-parameters: what lies outside is refused when a method is stated, not when it is attached."""

from collections.abc import Iterable

from peftjax.hints import did_you_mean


def require_positive(method: str, **values: int) -> None:
    """Raises ValueError unless each value is at least 1."""
    for what, value in values.items():
        if value < 1:
            raise ValueError(f"{method} {what} {value} is not positive")


def require_rate(method: str, rate: float, what: str = "dropout") -> None:
    """Raises ValueError unless a rate is in [0, 1)."""
    if not 0 <= rate < 1:
        raise ValueError(f"{method} {what} {rate} is not in [0, 1)")


def require_known(method: str, what: str, value: str, known: Iterable[str]) -> None:
    """Raises ValueError unless a choice is one of `known`."""
    known = tuple(known)
    if value not in known:
        raise ValueError(f"{method} {what} {value!r} is none of {', '.join(known)}{did_you_mean(str(value), known)}")
