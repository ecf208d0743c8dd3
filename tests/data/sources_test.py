"""A name or a path gives records and a plain report; a typo gives the nearest right word."""

import json

import pytest

from peftjax.data.sources import DATASETS, load_records


def test_a_jsonl_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n{"prompt": "a", "response": "b"}\n')
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: no response"):
        load_records(path)
    records, report = load_records(str(path), on_bad_row="skip")
    assert [record.response for record in records] == ["b"]
    assert json.loads(json.dumps(report)) == {"rows": 3, "kept": 1, "doubles": 1, "skipped": {"no response": 1}}


def test_a_built_in_set():
    records, report = load_records("general", per_document=1)
    assert records and report == {"rows": len(records), "kept": len(records), "doubles": 0, "skipped": {}}


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("ha_intent", {}, "no data set 'ha_intent'; did you mean 'ha_intents'?"),
        ("general", {"per_documents": 3}, "no option 'per_documents'; did you mean 'per_document'?"),
    ],
)
def test_typos_are_answered(name, options, message):
    with pytest.raises(ValueError) as error:
        load_records(name, **options)
    assert message in str(error.value)


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.jsonl"):
        load_records(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no records: 0 rows"):
        load_records(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="has no option 'languages'"):
        load_records(tmp_path / "empty.jsonl", languages=("en",))


def test_the_names():
    assert sorted(DATASETS) == [
        "general", "ha_intents", "i18n", "icd_chapter", "prose", "python_source", "qa", "rhobank", "safety", "shell",
    ]
