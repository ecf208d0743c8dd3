"""Records as classified texts: the prompt, or a pair of texts, with the model's special tokens, and the response as a label.

    {"prompt": "The lamp is on", "response": "light", ...}    ->    [CLS] the lamp is on [SEP], label 3 of the sorted labels

A row longer than `max_length` loses the end of its text (of a pair, tokens of the longer one); special tokens stay. Such rows are counted.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tokenizers

from peftjax.data.records import Record
from peftjax.data.template import Template
from peftjax.hints import did_you_mean
from peftjax.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """R tokenised rows: ids int32 [sum of lengths], types int32 of the same shape or None, offsets int64 [R+1], labels int32 [R],
    records int64 [R]; `truncated` counts the rows that `max_length` cut. Row i comes from record `records[i]` of the source. `virtual` and
    `routes` are as of `peftjax.data.packing.Rows`."""

    ids: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray
    records: np.ndarray
    truncated: int = 0
    virtual: int = 0
    routes: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def row(self, index: int) -> np.ndarray:
        """int32 [length of the row]."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def row_types(self, index: int) -> np.ndarray | None:
        """int32 [length of the row], 0 in the first text and 1 in the second; None where there are no pairs."""
        return None if self.types is None else self.types[self.offsets[index] : self.offsets[index + 1]]

    def loss(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """([0], [number of the label]): a text is classified at its first token."""
        return np.zeros(1, np.int32), self.labels[index : index + 1]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [R], tokens of each row."""
        return np.diff(self.offsets)

    @property
    def loss_lengths(self) -> np.ndarray:
        """int64 [R]: one label a row."""
        return np.ones(len(self), np.int64)

    @property
    def report(self) -> dict[str, int]:
        """Counts of rows, tokens and truncated rows."""
        return {"rows": len(self), "tokens": len(self.ids), "truncated": self.truncated}


def label_of(record: Record, template: Template) -> str:
    """The label text of a record: the template's response without white space around it."""
    return template.texts(record)[1].strip()


def labels_of(records: Sequence[Record], template: Template) -> tuple[str, ...]:
    """All labels that occur, sorted.

    Raises:
        ValueError: fewer than two.
    """
    labels = tuple(sorted({label_of(record, template) for record in records}))
    if len(labels) < 2:
        raise ValueError(f"the records have one label, {', '.join(labels)!r}; there is nothing to tell apart")
    return labels


def label_rows(
    source: Sequence[Record], tokenizer: Tokenizer, template: Template, labels: Sequence[str], max_length: int,
    second: Template | None = None, typed: bool = True, virtual: int = 0,
) -> LabelledRows:
    """The rows of a list or stored source of records, in its order.

    Args:
        template: its prompt is the text, its response the label.
        labels: their order gives the numbers.
        second: its prompt is the second text of a pair.
        typed: the model tells the two texts of a pair apart by token types.
        virtual: tokens that the model puts before each text.

    Raises:
        ValueError: a record without text, a label that is not among `labels`, or a tokenizer that puts nothing before a text.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    texts, found = [], []
    for record in source:
        text, label = template.texts(record)[0], label_of(record, template)
        if not text.strip():
            raise ValueError(f"record {record.id!r} has no prompt: there is no text to classify")
        if label not in numbers:
            raise ValueError(
                f"record {record.id!r} has the label {label!r}{did_you_mean(label, numbers)}; labels are {', '.join(labels)}. Those of the "
                "training records are taken unless config.data.labels names them all"
            )
        texts.append(text if second is None else (text, second.texts(record)[0]))
        found.append(numbers[label])
    encoded = _backend(tokenizer, max_length).encode_batch(texts, add_special_tokens=True)
    return LabelledRows(
        ids=np.concatenate([np.asarray(row.ids, np.int32) for row in encoded]),
        types=np.concatenate([np.asarray(row.type_ids, np.int32) for row in encoded]) if second is not None and typed else None,
        offsets=np.cumsum([0, *(len(row.ids) for row in encoded)], dtype=np.int64),
        labels=np.asarray(found, np.int32),
        records=np.arange(len(encoded)),
        truncated=sum(bool(row.overflowing) for row in encoded),
        virtual=virtual,
    )


def _backend(tokenizer: Tokenizer, max_length: int) -> tokenizers.Tokenizer:
    """A copy of the tokenizer's backend that cuts; control texts in the records stay text."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    backend.encode_special_tokens = True
    if backend.num_special_tokens_to_add(False) == 0:
        raise ValueError("this tokenizer puts no special token before a text, which is where an encoder's classifier reads")
    backend.enable_truncation(max_length)
    return backend
