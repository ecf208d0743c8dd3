"""Splits by whole group: no group is on two sides, and a group stays on its side when others come or go.

    fraction(group) = sha256(salt, group) / 2**256;  train below 0.9, validation below 0.95, test above

The share of a small set differs from the fractions asked for, and a split of very few groups may be empty.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from peftjax.data.records import Record

DEFAULT_FRACTIONS = {"train": 0.9, "validation": 0.05, "test": 0.05}


def split_records(
    records: Iterable[Record], fractions: Mapping[str, float] = DEFAULT_FRACTIONS, salt: str = "peftjax"
) -> dict[str, list[Record]]:
    """The records of each split, in their order. A record's own `split` wins, for its whole group.

    `fractions` are shares that sum to 1. Raises ValueError for other sums, for a record whose `split` is none of them, and
    for a group whose records name two splits.
    """
    if not fractions or min(fractions.values()) < 0 or not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"fractions must be shares that sum to 1, found {dict(fractions)}")
    records = list(records)
    explicit = _explicit_splits(records, fractions)
    splits: dict[str, list[Record]] = {name: [] for name in fractions}
    for record in records:
        splits[explicit.get(record.group) or _split_of(record.group, fractions, salt)].append(record)
    return splits


def refuse_overlap(train: Sequence[Record], evaluation: Sequence[Record]) -> None:
    """Raises ValueError, with the first ten ids and the count, if an id, group or content of `train` is in `evaluation` too."""
    kinds = {
        "id": lambda record: record.id,
        "group": lambda record: record.group,
        "content": lambda record: tuple((m["role"], m["content"]) for m in record.conversation),
    }
    found = []
    for kind, key in kinds.items():
        seen = {key(record) for record in train}
        shared = [record.id for record in evaluation if key(record) in seen]
        if shared:
            more = ", ..." if len(shared) > 10 else ""
            found.append(f"{len(shared)} share their {kind} with training records (ids {', '.join(shared[:10])}{more})")
    if found:
        raise ValueError(f"training and evaluation records overlap: of {len(evaluation)} evaluation records " + "; ".join(found))


def _explicit_splits(records: Sequence[Record], fractions: Mapping[str, float]) -> dict[str, str]:
    explicit: dict[str, Record] = {}
    for record in records:
        if not record.split:
            continue
        if record.split not in fractions:
            raise ValueError(f"record {record.id!r} asks for split {record.split!r}; the splits are {', '.join(fractions)}")
        other = explicit.setdefault(record.group, record)
        if other.split != record.split:
            raise ValueError(
                f"group {record.group!r} is in two splits: record {other.id!r} says {other.split!r}, "
                f"record {record.id!r} says {record.split!r}; a group is never divided"
            )
    return {group: record.split for group, record in explicit.items()}


def _split_of(group: str, fractions: Mapping[str, float], salt: str) -> str:
    digest = hashlib.sha256(f"{salt}\0{group}".encode()).digest()
    point, upper = int.from_bytes(digest, "big") / 2**256, 0.0
    for name, share in fractions.items():
        upper += share
        if point < upper:
            return name
    # The shares' sum was rounded to just below the point.
    return [name for name, share in fractions.items() if share][-1]
