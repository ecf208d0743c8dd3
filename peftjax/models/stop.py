"""Text as it comes, and where it stops.

    stops = StopStrings(tokenizer, ["\\n\\n", "User:"])
    "".join(pieces(token_ids, tokenizer, stops))                the text before the first stop string

A token is not a piece of text: one character may be several tokens, and a stop string may begin and end within tokens. So text is always
decoded from the first id of the answer; what may yet turn out otherwise (half a character, the beginning of a stop string) is held back,
and what was given once is never taken back.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from peftjax.models.tokenizer import Tokenizer

HALF = "\ufffd"  # what a decoder writes for bytes that are no whole character


@dataclasses.dataclass(frozen=True, eq=False)
class StopStrings:
    """Texts that end an answer. Control tokens count as their texts (`<|im_end|>`).

    Raises:
        ValueError: an empty string, which every text begins with.
    """

    tokenizer: Tokenizer
    strings: Sequence[str]

    def __post_init__(self):
        if isinstance(self.strings, str):
            object.__setattr__(self, "strings", (self.strings,))
        if "" in self.strings:
            raise ValueError("a stop string is empty; every answer would end before it begins")

    def length(self, ids: Sequence[int], new: int) -> int | None:
        """How many of the ids it takes until a stop string is there, or None; the last `new` ids were not looked at before."""
        if not self._within(ids):
            return None
        return next(n for n in range(len(ids) - new + 1, len(ids) + 1) if self._within(ids[:n]))

    def cut(self, text: str) -> str:
        """The text before the stop string that is complete first, the longest of those that end together: so it does not matter how much
        comes at a time, and what begins earlier but is not there yet ends nothing."""
        found = [(start + len(stop), start) for stop in self.strings if (start := text.find(stop)) >= 0]
        return text[:min(found)[1]] if found else text

    def held(self, text: str) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = max((len(stop) for stop in self.strings), default=0)
        return next((n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in self.strings)), 0)

    def _within(self, ids: Sequence[int]) -> bool:
        if not self.strings:
            return False
        text = self.tokenizer.decode(ids, skip_special=False)
        return any(stop in text for stop in self.strings)


def pieces(ids: Iterable[int], tokenizer: Tokenizer, stops: StopStrings) -> Iterator[str]:
    """The text of ids as they come, up to the first stop string; no piece is empty."""
    read: list[int] = []
    given, now = 0, ""
    for token in ids:
        read.append(token)
        now = tokenizer.decode(read)
        if stops.cut(now) != now:
            break
        whole = now.rstrip(HALF)
        sure = len(whole) - stops.held(whole)
        if sure > given:
            yield now[given:sure]
            given = sure
    rest = stops.cut(now)[given:]
    if rest:
        yield rest
