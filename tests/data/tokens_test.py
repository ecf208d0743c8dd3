"""Tokenised rows: the boundary, the loss, what is cut, and a cache that follows its inputs."""

import dataclasses

import numpy as np
import pytest
from char_tokenizer import CharTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftjax.data.records import Record
from peftjax.data.template import Template
from peftjax.data.tokens import tokenize

PLAIN = Template(response="{response}")
RECORDS = [
    Record(prompt="abc", response="de"),
    Record(prompt="", response="plain"),
    Record(prompt="longer prompt", response="xyz"),
    Record(prompt="q", response="far too long a response"),
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path))
    return tmp_path / "tokens"


def _same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(dataclasses.astuple(first), dataclasses.astuple(second), strict=True))


def test_rows_by_hand():
    tokenizer = CharTokenizer()
    rows = tokenize(RECORDS, tokenizer, PLAIN, max_length=10, cache=False)
    texts = [tokenizer.decode(rows.row(i)) for i in range(len(rows))]
    assert texts == ["abcde", "plain", "promptxyz"]  # the long prompt lost its left, the long response is dropped
    assert [rows.row(i)[-1] for i in range(3)] == [2, 2, 2]
    assert rows.row(1)[0] == 1
    assert rows.prompt_len.tolist() == [3, 1, 6]
    assert rows.loss_lengths.tolist() == [3, 6, 4]
    assert rows.records.tolist() == [0, 1, 2]
    assert rows.report == {"rows": 3, "tokens": 23, "loss_tokens": 13, "truncated": 1, "dropped": 1}


def test_without_a_begin_token_the_first_token_of_plain_text_carries_no_loss():
    rows = tokenize(RECORDS[1:2], CharTokenizer(bos_id=None), PLAIN, max_length=10, cache=False)
    assert (rows.prompt_len[0], rows.lengths[0], rows.loss_lengths[0]) == (0, 6, 5)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    pairs=st.lists(st.tuples(st.text("ab", max_size=30), st.text("ab", min_size=1, max_size=30)), min_size=1, max_size=8),
    max_length=st.integers(2, 40),
)
def test_the_response_is_never_cut_and_every_record_is_accounted_for(pairs, max_length):
    tokenizer = CharTokenizer()
    records = [Record(prompt=prompt, response=response) for prompt, response in pairs]
    if all(len(record.response) >= max_length for record in records):
        with pytest.raises(ValueError, match="no rows left"):
            tokenize(records, tokenizer, PLAIN, max_length, cache=False)
        return
    rows = tokenize(records, tokenizer, PLAIN, max_length, cache=False)
    assert len(rows) + rows.dropped == len(records)
    assert rows.lengths.max() <= max_length
    for index, source in enumerate(rows.records):
        prompt, response = rows.row(index)[: rows.prompt_len[index]], rows.row(index)[rows.prompt_len[index] :]
        assert tokenizer.decode(response) == records[source].response
        assert records[source].prompt.endswith(tokenizer.decode(prompt))
    cut = sum(len(rows.row(i)) < len(records[s].prompt or "b") + len(records[s].response) + 1 for i, s in enumerate(rows.records))
    assert cut == rows.truncated


def test_a_chat_keeps_its_control_tokens_and_text_does_not_become_any():
    record = Record(messages=({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}))
    tokenizer = CharTokenizer()
    rows = tokenize([record], tokenizer, Template(chat=True), max_length=99, cache=False)
    assert rows.row(0).tolist() == [*tokenizer.encode_chat([{"role": "user", "content": "Hello"}], True), *tokenizer.encode("Hi"), 2]


def test_the_second_time_nothing_is_tokenised(cache):
    first = tokenize(RECORDS, CharTokenizer(), PLAIN, max_length=10)
    second_tokenizer = CharTokenizer()
    assert _same(first, tokenize(RECORDS, second_tokenizer, PLAIN, max_length=10))
    assert second_tokenizer.texts_encoded == 0


def test_the_cache_follows_records_tokenizer_template_and_length(cache):
    tokenize(RECORDS, CharTokenizer(), PLAIN, max_length=10)
    tokenize(RECORDS[:3], CharTokenizer(), PLAIN, max_length=10)
    tokenize(RECORDS, CharTokenizer(bos_id=None), PLAIN, max_length=10)
    tokenize(RECORDS, CharTokenizer(), Template(), max_length=10)
    tokenize(RECORDS, CharTokenizer(), PLAIN, max_length=11)
    assert len(list(cache.glob("*.npz"))) == 5


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_a_damaged_cache_file_is_made_anew(cache, damage):
    first = tokenize(RECORDS, CharTokenizer(), PLAIN, max_length=10)
    (path,) = cache.glob("*.npz")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[content.index(first.ids.tobytes()) + 4] ^= 1
    elif damage == "foreign":
        np.savez(path, ids=np.zeros(3))
        content = path.read_bytes()
    path.write_bytes({"truncate": content[: len(content) // 2], "empty": b""}.get(damage, content))
    with pytest.warns(UserWarning, match="damaged.*made anew"):
        assert _same(first, tokenize(RECORDS, CharTokenizer(), PLAIN, max_length=10))
    assert _same(first, tokenize(RECORDS, CharTokenizer(), PLAIN, max_length=10))


def test_a_tokenizer_that_begins_texts_begins_every_plain_prompt_also_a_cut_one():
    tokenizer, record = CharTokenizer(bos_first=True), Record(prompt="abcdef", response="x")
    rows = tokenize([record], tokenizer, Template(response="{response}"), 100, cache=False)
    assert rows.row(0).tolist() == [1, *tokenizer.encode("abcdefx"), 2] and rows.prompt_len[0] == 7
    cut = tokenize([record], tokenizer, Template(response="{response}"), 5, cache=False)
    assert cut.row(0).tolist() == [1, *tokenizer.encode("efx"), 2] and cut.truncated == 1
    assert Template().prompt_ids(record, tokenizer) == [1, *tokenizer.encode("abcdef")]
