"""Records tokenised once: flat ids with offsets, the prompt's length per row, cached by content.

    ids:        [p p p r r r e | p r e | b r r r e]     p prompt, r response, e end of text, b begin of text (empty prompts)
    prompt_len:  3               1       1              loss falls on the tokens from prompt_len on, never on a row's first

A row longer than `max_length` loses the left of its prompt, never of its response; a response that alone is longer is dropped.
Both are counted. The cache is keyed by records, tokenizer, template and max_length; a damaged file is made anew.
"""

import dataclasses
import hashlib
import itertools
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from peftjax.cache import cache_dir
from peftjax.data.records import Record, content_hash
from peftjax.data.template import Template
from peftjax.files import replacing

# Part of the cache's key: to be raised when the same inputs give other rows.
_FORMAT = 1
_CHUNK = 1024
_CACHED = ("ids", "offsets", "prompt_len", "records", "truncated", "dropped")


class Encoder(Protocol):
    """What is needed of a tokenizer; text of the records never becomes control tokens."""

    bos_id: int | None
    bos_first: bool
    eos_id: int
    fingerprint: str

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    def encode_chat(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """R tokenised rows: ids int32 [sum of lengths], offsets int64 [R+1], prompt_len int32 [R], records int64 [R].

    Row i is `ids[offsets[i]:offsets[i+1]]` and comes from record `records[i]` of the source (dropped rows leave gaps).
    `truncated` and `dropped` count the rows that `max_length` cut and left out. `virtual` and `routes` are as of
    `peftjax.data.packing.Rows`, and not part of what is cached.
    """

    ids: np.ndarray
    offsets: np.ndarray
    prompt_len: np.ndarray
    records: np.ndarray
    truncated: int = 0
    dropped: int = 0
    virtual: int = 0
    routes: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt_len)

    def row(self, index: int) -> np.ndarray:
        """int32 [length of the row]."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def row_types(self, index: int) -> None:
        """Token types of a row: a decoder has none."""

    def loss(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions within the row that carry loss, the token that follows each): two int arrays of one length."""
        ids, first = self.row(index), max(int(self.prompt_len[index]), 1)
        return np.arange(first - 1, len(ids) - 1), ids[first:]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [R], tokens of each row."""
        return np.diff(self.offsets)

    @property
    def loss_lengths(self) -> np.ndarray:
        """int64 [R], tokens of each row that carry loss: those of the response and the end, without a row's first token."""
        return self.lengths - np.maximum(self.prompt_len, 1)

    @property
    def report(self) -> dict[str, int]:
        """Counts of rows, tokens, loss_tokens, truncated and dropped rows."""
        return {
            "rows": len(self),
            "tokens": len(self.ids),
            "loss_tokens": int(self.loss_lengths.sum()),
            "truncated": self.truncated,
            "dropped": self.dropped,
        }


def tokenize(
    source: Sequence[Record], tokenizer: Encoder, template: Template, max_length: int, cache: bool = True
) -> TokenRows:
    """The token rows of a list or stored source of records, from the cache if they were made before.

    Raises ValueError if not one row is left.
    """
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}; a row has at least a token and the end of text")
    path = _cache_path(source, tokenizer, template, max_length) if cache else None
    rows = _load(path) if path is not None and path.exists() else None
    if rows is None:
        rows = _tokenize(source, tokenizer, template, max_length)
        if path is not None:
            _save(path, rows)
    if not len(rows):
        raise ValueError(f"no rows left of {len(source)} records: {rows.dropped} have a response of more than {max_length - 1} tokens")
    return rows


def _tokenize(source: Sequence[Record], tokenizer: Encoder, template: Template, max_length: int) -> TokenRows:
    rows, prompt_len, kept, truncated = [], [], [], 0
    first = template.first_ids(tokenizer)
    # Stored sources are read far quicker in their order than one by one.
    stream = iter(source)
    for start in range(0, len(source), _CHUNK):
        chunk = list(itertools.islice(stream, _CHUNK))
        prompts, responses = _encode(chunk, tokenizer, template)
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True), start=start):
            response = [*response, tokenizer.eos_id]
            if not prompt and not first and tokenizer.bos_id is not None:
                prompt = [tokenizer.bos_id]
            space = max_length - len(response) - len(first)
            if space < 0:
                continue
            truncated += len(prompt) > space
            prompt = first + prompt[max(0, len(prompt) - space) :]
            rows.append(np.asarray(prompt + response, np.int32))
            prompt_len.append(len(prompt))
            kept.append(index)
    return TokenRows(
        ids=np.concatenate(rows) if rows else np.zeros(0, np.int32),
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        prompt_len=np.asarray(prompt_len, np.int32),
        records=np.asarray(kept, np.int64),
        truncated=truncated,
        dropped=len(source) - len(rows),
    )


def _encode(chunk: list[Record], tokenizer: Encoder, template: Template) -> tuple[list[list[int]], list[list[int]]]:
    texts = [template.texts(record) for record in chunk]
    if template.chat:
        prompts = [template.prompt_ids(record, tokenizer) for record in chunk]
    else:
        prompts = tokenizer.encode_batch([prompt for prompt, _ in texts])
    return prompts, tokenizer.encode_batch([response for _, response in texts])


def _cache_path(source: Sequence[Record], tokenizer: Encoder, template: Template, max_length: int) -> Path:
    control = [tokenizer.fingerprint, tokenizer.bos_id, tokenizer.eos_id, tokenizer.bos_first]
    key = json.dumps([_FORMAT, content_hash(source), control, dataclasses.astuple(template), max_length])
    return cache_dir("tokens") / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".npz")


def _save(path: Path, rows: TokenRows) -> None:
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, **{name: getattr(rows, name) for name in _CACHED})


def _load(path: Path) -> TokenRows | None:
    """The cached rows, or None (with a warning) if the file is damaged: np.load's errors for a broken archive, and our check."""
    try:
        with np.load(path, allow_pickle=False) as file:
            rows = TokenRows(**{
                name: int(file[name]) if name in ("truncated", "dropped") else file[name] for name in _CACHED
            })
        consistent = len(rows.offsets) == len(rows) + 1 == len(rows.records) + 1 and rows.offsets[-1] == len(rows.ids)
        reason = None if consistent else "its parts do not fit together"
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error)
    if reason is None:
        return rows
    warnings.warn(f"the token cache {path} is damaged ({reason}); it is made anew", stacklevel=3)
    return None
