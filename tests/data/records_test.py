"""Rows become records or a named refusal; nothing is lost without a count."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftjax.data.records import BadRow, Record, content_hash, from_row, read_jsonl, to_row, write_jsonl

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WORDS = TEXT.filter(lambda text: text.strip())
EXTRA = st.fixed_dictionaries({}, optional={"aliases": st.lists(TEXT)})
RECORDS = st.builds(Record, prompt=TEXT, response=WORDS, id=TEXT, group=TEXT, lang=TEXT, extra=EXTRA)


@given(RECORDS)
def test_a_row_gives_the_record_back(record):
    assert from_row(json.loads(json.dumps(to_row(record)))) == record
    assert unicodedata.is_normalized("NFC", record.prompt + "\n" + record.response)


def test_a_file_gives_the_records_back(tmp_path):
    records = [
        Record(prompt="", response="plain \u2028 text\u0085 here"),
        Record(prompt="Zażółć", response="日本語 🙂", group="g", lang="pl", extra={"aliases": ["a", "b"]}),
        Record(messages=({"role": "user", "content": "Hello\nyou"}, {"role": "assistant", "content": "Hi"}), split="test"),
    ]
    write_jsonl(tmp_path / "a.jsonl", records)
    found, report = read_jsonl(tmp_path / "a.jsonl")
    assert found == records
    assert (report.rows, report.kept, report.doubles, report.skipped) == (3, 3, 0, {})


def test_defaults():
    record = Record(prompt="a", response="b")
    assert record.id == Record(prompt="a", response="b").id != Record(prompt="b", response="a").id
    assert record.group == record.id
    assert Record(prompt="e\u0301", response="b").prompt == "\u00e9"
    chat = Record(messages=[{"role": "assistant", "content": "Hi"}])
    assert (chat.response, chat.conversation[-1]["content"]) == ("Hi", "Hi")
    assert [m["role"] for m in record.conversation] == ["user", "assistant"]


BAD_ROWS = {
    b'{"prompt": "a", "response": "b"': "not JSON",
    b'{"prompt": "a", "response": "b", "score": NaN}': "not JSON",
    b'{"prompt": "\xff", "response": "b"}': "not UTF-8",
    b'["a", "b"]': "not a JSON object",
    b'{"prompt": "a"}': "no response",
    b'{"prompt": "a", "response": null}': "no response",
    b'{"prompt": "a", "response": " \\n"}': "the response is empty",
    b'{"prompt": 3, "response": "b"}': "a field is not text",
    b'{"prompt": "a", "response": {"x": 1}}': "a field is not text",
    b'{"prompt": "a", "prompt": "c", "response": "b"}': "a field is given twice",
    b'{"prompt": "\\ud800", "response": "b"}': "text holds half a surrogate pair",
    b'{"messages": []}': "messages are malformed",
    b'{"messages": [{"role": "robot", "content": "b"}]}': "messages are malformed",
    b'{"messages": [{"role": "assistant"}]}': "messages are malformed",
    b'{"messages": [{"role": "user", "content": "b"}]}': "the last message is not the assistant's",
    b'{"messages": [{"role": "assistant", "content": "b"}], "prompt": "a"}': "prompt or response beside messages",
}


@pytest.mark.parametrize("line,reason", BAD_ROWS.items())
def test_a_bad_row_is_an_error_with_file_line_and_reason(tmp_path, line, reason):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"prompt": "fine", "response": "row"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 3: {reason}"):
        read_jsonl(path)


def test_skipped_rows_are_counted_by_reason(tmp_path):
    path = tmp_path / "bad.jsonl"
    good = b'{"prompt": "fine", "response": "row"}'
    path.write_bytes(b"\n".join([good, *BAD_ROWS, good]))
    records, report = read_jsonl(path, on_bad_row="skip")
    assert len(records) == 1
    assert (report.rows, report.kept, report.doubles) == (len(BAD_ROWS) + 2, 1, 1)
    assert sum(report.skipped.values()) == len(BAD_ROWS)
    assert set(report.skipped) == set(BAD_ROWS.values())
    assert "2 skipped: not JSON" in str(report)


def test_one_id_on_two_rows_names_both_lines(tmp_path):
    path = tmp_path / "ids.jsonl"
    rows = [{"id": 7, "response": "a"}, {"id": "8", "response": "b"}, {"id": "7", "response": "c"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="line 3: one id on two different rows.*'7' is also on line 1"):
        read_jsonl(path)
    records, report = read_jsonl(path, on_bad_row="skip")
    assert [record.response for record in records] == ["a", "b"]
    assert report.skipped == {"one id on two different rows": 1}


def test_a_byte_order_mark_and_windows_lines_are_no_hindrance(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "response": "b"}\r\n{"prompt": "c", "response": "d"}\r\n')
    assert [record.prompt for record in read_jsonl(path)[0]] == ["a", "c"]


def test_on_bad_row_is_checked(tmp_path):
    with pytest.raises(ValueError, match="'ignore'"):
        read_jsonl(tmp_path / "a.jsonl", on_bad_row="ignore")


def test_content_hash_sees_every_field_and_the_order():
    first, second = Record(prompt="a", response="b"), Record(prompt="c", response="d")
    hashes = {content_hash(records) for records in ([first, second], [second, first], [first])}
    hashes |= {content_hash([Record(prompt="a", response="b", **{name: "x"})]) for name in ("group", "lang", "source", "split")}
    hashes.add(content_hash([Record(prompt="a", response="b", extra={"aliases": ["c"]})]))
    assert len(hashes) == 8
    assert content_hash([first, second]) == content_hash((first, second))


def test_extra_must_not_shadow_a_field():
    with pytest.raises(BadRow, match="given twice"):
        Record(prompt="a", response="b", extra={"group": "g"})
