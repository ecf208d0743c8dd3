"""Held-out rows: what an evaluation is of."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from peftjax.data.records import Record


@dataclasses.dataclass(frozen=True)
class Held:
    """`tokens` (a task's rows), and in the same order the `records` they come from and what they ask, as `texts`."""

    records: Sequence[Record]
    texts: Sequence[str]
    tokens: Any

    def prompts(self) -> list[list[int]]:
        """The prompt's ids of each row, cut where training cuts them; of next-token rows."""
        return [self.tokens.row(i)[: self.tokens.prompt_len[i]].tolist() for i in range(len(self.tokens))]
