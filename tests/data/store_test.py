"""What is stored is what was given, in its order, and TensorFlow is nowhere."""

import json
import os
import subprocess
import sys

import pytest

import peftjax
from peftjax.data.records import Record, content_hash
from peftjax.data.store import RecordSource, store

RECORDS = [
    Record(prompt=f"Zażółć {i} 🙂", response="日本\n語", group=f"g{i % 7}", extra={"aliases": ["é", i]} if i % 3 else {})
    for i in range(500)
]
CHAT = Record(messages=({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}), lang="en")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
    return tmp_path / "store"


def test_the_source_equals_the_list(cache):
    sources = store({"train": RECORDS, "test": [CHAT], "validation": []}, "words")
    assert {name: len(source) for name, source in sources.items()} == {"train": 500, "test": 1, "validation": 0}
    train = sources["train"]
    assert isinstance(train, RecordSource) and list(train) == RECORDS
    assert (train[0], train[-1], train[123]) == (RECORDS[0], RECORDS[-1], RECORDS[123])
    assert train.getitems([3, 499, 3]) == [RECORDS[3], RECORDS[499], RECORDS[3]]
    assert type(train[5].prompt) is str and train[5].extra == {"aliases": ["é", 5]}
    assert list(sources["test"]) == [CHAT] and list(sources["validation"]) == []
    assert content_hash(train) == content_hash(RECORDS)
    with pytest.raises(IndexError, match="record 500 of 500"):
        train[500]


def test_the_second_time_nothing_is_written(cache):
    store({"train": RECORDS}, "words")
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.array_record*")}
    assert list(store({"train": RECORDS}, "words")["train"]) == RECORDS
    assert before and before == {path: path.stat().st_mtime_ns for path in cache.rglob("*.array_record*")}


def test_changed_records_never_give_old_rows(cache):
    store({"train": RECORDS}, "words")
    changed = [*RECORDS[:-1], Record(prompt=RECORDS[-1].prompt, response="new", id=RECORDS[-1].id)]
    assert store({"train": changed}, "words")["train"][-1].response == "new"
    reordered = RECORDS[::-1]
    assert list(store({"train": reordered}, "words")["train"]) == reordered


def test_an_id_twice_is_refused_before_anything_is_written(cache):
    with pytest.raises(ValueError, match=f"split 'train': two records have the id '{RECORDS[0].id}'"):
        store({"train": [*RECORDS, RECORDS[0]]}, "words")
    assert not list(cache.rglob("*.array_record*"))


def test_a_folder_whose_counts_are_wrong_is_removed(cache):
    store({"train": RECORDS}, "words")
    (info,) = cache.rglob("dataset_info.json")
    content = json.loads(info.read_text())
    content["splits"][0]["shardLengths"] = ["499"]
    info.write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match="'train' of 500 records holds 499"):
        store({"train": RECORDS}, "words")
    assert list(store({"train": RECORDS}, "words")["train"]) == RECORDS


def test_any_file_may_name_a_store_but_not_a_split(cache):
    assert list(store({"train": [CHAT]}, "../my data/köln.v2.jsonl")["train"]) == [CHAT]
    assert [path.name.split("-")[0] for path in cache.iterdir()] == ["k_ln_v2"]
    with pytest.raises(ValueError, match="'My Split' cannot name a split"):
        store({"My Split": RECORDS}, "words")


FORBIDDEN = """
import builtins
import sys

plain_import = builtins.__import__

def forbidding(name, *rest, **named):
    if name.split(".")[0] == "tensorflow":
        raise AssertionError("tensorflow was imported")
    return plain_import(name, *rest, **named)

builtins.__import__ = forbidding
from peftjax.data.records import Record
from peftjax.data.store import store
assert "tensorflow_datasets" not in sys.modules, "importing the store must stay quick"
for _ in range(2):
    records = store({"train": [Record(prompt=str(i), response="é") for i in range(9)]}, "words")["train"]
    assert [r.prompt for r in records] == list("012345678") and records[3].response == "é"
assert "tensorflow" not in sys.modules
"""


def test_tensorflow_is_never_imported(cache):
    root = os.path.dirname(os.path.dirname(peftjax.__file__))
    done = subprocess.run([sys.executable, "-c", FORBIDDEN], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
