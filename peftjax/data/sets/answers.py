"""What every set promises: no exact doubles, no prompt with two different answers, an order that its seed alone decides."""

import collections
import hashlib
import random
from collections.abc import Iterable

from peftjax.data.records import Record


def single_answers(records: Iterable[Record]) -> list[Record]:
    """The first record of each prompt, in their order; none of a prompt that has two different responses."""
    first: dict[str, Record] = {}
    answers: dict[str, set[str]] = collections.defaultdict(set)
    for record in records:
        first.setdefault(record.prompt, record)
        answers[record.prompt].add(record.response)
    return [record for prompt, record in first.items() if len(answers[prompt]) == 1]


def shuffled(records: Iterable[Record], key: str) -> list[Record]:
    """The records in the order that `key`, the set's name and seed, decides."""
    records = list(records)
    random.Random(key).shuffle(records)
    return records


def digest(text: str) -> str:
    """Eight hex digits of the text, to name a group by."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def one_line(text: str) -> str:
    """The text with runs of white space made one space."""
    return " ".join(text.split())
