"""Scores over classes: what a mean over items hides where labels are of unlike frequency.

    macro_f1(["a", "a", "b"], ["a", "b", "b"]) == 2 / 3          # F1 of "a" 2/3, of "b" 2/3

F1 of a class is 2·TP / (2·TP + FP + FN); macro F1 is its mean over the classes that occur among the references or the predictions.
"""

import collections
from collections.abc import Sequence


def class_f1(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """F1 of every class that occurs, in the order of their names. ValueError for no items or unequal lengths."""
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"there must be one reference a prediction, and one at least; found {len(predictions)} and {len(references)}")
    right = collections.Counter(label for label, wanted in zip(predictions, references, strict=True) if label == wanted)
    said, wanted = collections.Counter(predictions), collections.Counter(references)
    return {label: 2 * right[label] / (said[label] + wanted[label]) for label in sorted(said | wanted)}


def macro_f1(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean of `class_f1` over classes."""
    scores = class_f1(predictions, references)
    return sum(scores.values()) / len(scores)
