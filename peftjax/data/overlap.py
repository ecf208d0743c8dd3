"""Near copies between splits: how much of a text, in shingles of 13 characters, was seen elsewhere.

    share(text) = |shingles(text) & seen| / |shingles(text)|,   shingles(text) = every run of 13 characters of the normalised text

Whole groups on one side keep equal units apart, not units that say nearly the same (A. Broder, "On the resemblance and containment of
documents", 1997). 13 characters are two or three words: more than chance, less than a sentence.
"""

from collections.abc import Iterable

WIDTH = 13


def shingle_shares(seen: Iterable[str], texts: Iterable[str], width: int = WIDTH) -> list[float]:
    """Of each of `texts` the share of its shingles that occur in one of `seen`, in [0, 1]; case and runs of white space do not count.

    A text shorter than `width` is one shingle: seen as a whole or not.
    """
    known: set[str] = set()
    for text in seen:
        known |= _shingles(text, width)
    return [len(found & known) / len(found) for found in (_shingles(text, width) for text in texts)]


def _shingles(text: str, width: int) -> set[str]:
    text = " ".join(text.casefold().split())
    return {text[start : start + width] for start in range(max(1, len(text) - width + 1))}
