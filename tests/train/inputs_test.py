"""The data of a run: splits by group, held-out rows chosen by id, clear refusals."""

import json

import pytest
from tiny_run import ANIMALS, tiny_config

from peftjax.models.tokenizer import Tokenizer
from peftjax.train.inputs import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny_config(folder)
    return folder


def tokenizer(folder):
    return Tokenizer.from_directory(folder / "base")


def test_groups_fall_on_one_side_and_counts_are_reported(folder):
    inputs = prepare(tiny_config(folder), tokenizer(folder))
    splits = inputs.report["splits"]
    assert splits["train"]["records"] == 70 and splits["train"]["groups"] == 14
    assert {r.group for r in inputs.held["test"].records} == {ANIMALS[15]}
    assert inputs.held["test"].texts[0].startswith("paint the jay")
    assert [len(ids) for ids in inputs.held["test"].prompts()] == inputs.held["test"].tokens.prompt_len.tolist()


def test_more_held_out_rows_extend_the_choice(folder):
    config = tiny_config(folder)
    chosen = []
    for config.eval.rows in (2, 4, 0):
        chosen.append([record.id for record in prepare(config, tokenizer(folder)).held["test"].records])
    assert chosen[0] == chosen[1][:2] and chosen[1] == chosen[2][:4] and len(chosen[2]) == 5


def test_the_same_records_give_the_same_fingerprint(folder, tmp_path):
    config = tiny_config(folder)
    first = prepare(config, tokenizer(folder)).fingerprint
    rows = [json.loads(line) for line in open(config.data.name)]
    rows[0]["response"] = "red dog"
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prepare(config, tokenizer(folder)).fingerprint == first
    config.data.name = str(tmp_path / "other.jsonl")
    assert prepare(config, tokenizer(folder)).fingerprint != first


def test_broken_rows_are_an_error_or_counted(folder, tmp_path):
    config = tiny_config(folder)
    path = tmp_path / "broken.jsonl"
    path.write_text(open(config.data.name).read() + '{"prompt": "no response"}\n')
    config.data.name = str(path)
    with pytest.raises(ValueError, match="broken.jsonl.*81"):
        prepare(config, tokenizer(folder))
    config.data.on_bad_row = "skip"
    assert prepare(config, tokenizer(folder)).report["splits"]["train"]["records"] == 70


def test_no_training_rows_is_refused(folder, tmp_path):
    config = tiny_config(folder)
    path = tmp_path / "test_only.jsonl"
    path.write_text('{"prompt": "a", "response": "b", "split": "test"}\n')
    config.data.name = str(path)
    with pytest.raises(ValueError, match="training split"):
        prepare(config, tokenizer(folder))
