"""Records kept as a tensorflow-datasets builder in array_record files, read at random, with TensorFlow not installed.

    <cache>/store/<name>-<content hash>/records/1.0.0/{records-train.array_record-00000-of-00001, dataset_info.json, ...}

The folder is named by the content, so a changed source can never give old rows. tensorflow-datasets writes beside and renames,
so a folder that is there is complete; its counts are compared all the same.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax.cache import cache_dir
from peftjax.data.records import Record, content_hash
from peftjax.files import locked

# Beyond this the library's shuffler spills to disk through TensorFlow.
_MAX_BYTES = 1_000_000_000
_TEXTS = ("id", "prompt", "response", "group", "lang", "source", "split")
# Part of the folder's name: to be raised when the stored form changes.
_FORMAT = 1


class RecordSource(Sequence[Record]):
    """The records of one stored split, read at random; equal to the list that was stored, in its order."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], content_hash: str):
        self._rows = rows
        self.content_hash = content_hash

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """The record at `index`, which may count from the end. IndexError outside."""
        return self.getitems([index])[0]

    def getitems(self, indices: Sequence[int]) -> list[Record]:
        """The records at these indices, read in one go."""
        count = len(self)
        for index in indices:
            if not -count <= index < count:
                raise IndexError(f"record {index} of {count}")
        return [_decoded(row) for row in self._rows.__getitems__([int(index) % count for index in indices])] if len(indices) else []

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), 256):
            yield from self.getitems(range(start, min(start + 256, len(self))))


def store(
    splits: Mapping[str, Sequence[Record]], name: str, cache: str | Path | None = None
) -> dict[str, RecordSource]:
    """Stores the splits once (below `cache`, by default the user's cache folder) and opens them; an empty split stays empty.

    `name`, of a set or a file, is for people who look into the folder. ValueError for an id that occurs twice in a split, for a split
    of over 1 GB and for a split's name that the library cannot take; RuntimeError if rows were lost.
    """
    for split in splits:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", split):
            raise ValueError(f"{split!r} cannot name a split; use lower-case letters, digits and underscores")
    hashes = {split: content_hash(records) for split, records in splits.items()}
    filled = {split: records for split, records in splits.items() if len(records)}
    key = hashlib.sha256(json.dumps([_FORMAT, hashes]).encode()).hexdigest()[:32]
    root = cache_dir("store") if cache is None else Path(cache)
    folder = root / f"{re.sub(r'[^A-Za-z0-9_]+', '_', Path(name).stem)}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    opened: dict[str, Sequence[Mapping[str, Any]]] = {}
    if filled:
        with locked(folder / ".lock"):
            builder = _builder(filled, folder)
        opened = {split: builder.as_data_source(split) for split in filled}
    return {split: RecordSource(opened.get(split, ()), hashes[split]) for split in splits}


def _builder(splits: Mapping[str, Sequence[Record]], folder: Path):
    """The prepared builder over `folder`; prepares it if it is not there."""
    import tensorflow_datasets as tfds

    class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Prompts and responses; `messages` and `extra` are JSON."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {name: tfds.features.Text() for name in (*_TEXTS, "messages", "extra")}
            # Stored in the given order, so that the stored split equals the list.
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(records) for split, records in splits.items()}

        def _generate_examples(self, records):
            for number, record in enumerate(records):
                yield number, _encoded(record)

    builder = Records(data_dir=str(folder), file_format="array_record")
    if not Path(builder.data_dir).exists():
        for split, records in splits.items():
            _check(split, records)
        builder.download_and_prepare(file_format="array_record")
    for split, records in splits.items():
        found = builder.info.splits[split].num_examples if split in builder.info.splits else 0
        readable = len(builder.as_data_source(split)) if found else 0
        if not found == readable == len(records):
            shutil.rmtree(builder.data_dir)
            raise RuntimeError(
                f"{builder.data_dir}: split {split!r} of {len(records)} records holds {found}, of which {readable} can be read; "
                "the folder is removed, the next call makes it anew"
            )
    return builder


def _check(split: str, records: Sequence[Record]) -> None:
    """Refuses what the library would report in a confusing way or not at all."""
    seen: set[str] = set()
    size = 0
    for record in records:
        if record.id in seen:
            raise ValueError(f"split {split!r}: two records have the id {record.id!r}")
        seen.add(record.id)
        size += sum(len(text.encode()) for text in _encoded(record).values())
    if size > _MAX_BYTES:
        raise ValueError(f"split {split!r} has {size:,} bytes; at most {_MAX_BYTES:,} can be stored without TensorFlow")


def _encoded(record: Record) -> dict[str, str]:
    texts = {name: getattr(record, name) for name in _TEXTS}
    return texts | {"messages": json.dumps(record.messages), "extra": json.dumps(record.extra)}


def _decoded(row: Mapping[str, bytes]) -> Record:
    """Text features are read as bytes; every one is decoded here."""
    texts = {name: value.decode("utf-8") for name, value in row.items()}
    messages, extra = json.loads(texts.pop("messages")), json.loads(texts.pop("extra"))
    if messages:
        texts["prompt"] = ""
    return Record(**texts, messages=tuple(messages), extra=extra)
