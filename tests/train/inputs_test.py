"""The data of a run: splits by group, held-out rows chosen by id, clear refusals."""

import json

import pytest
from tiny_run import ANIMALS, tiny_config

from peftjax.data import prefixes
from peftjax.interop.base import load_base
from peftjax.models.tokenizer import Tokenizer
from peftjax.train.inputs import prepare
from peftjax.train.parallel import compile_step
from peftjax.train.prepare import prepare_model
from peftjax.train.sharding import make_mesh


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


def test_fewer_training_records_are_the_beginning_of_more(folder):
    config = tiny_config(folder)
    chosen = []
    for config.data.rows in (0, 5, 9):
        inputs = prepare(config, tokenizer(folder))
        chosen.append([tuple(ids) for ids in map(inputs.train.rows.row, range(len(inputs.train.rows)))])
        assert inputs.report["splits"]["train"]["records"] == (config.data.rows or 70)
    assert chosen[1] == chosen[2][:5] and len(chosen[2]) == 9 and len(chosen[0]) == 70


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


LAYOUTS = {"packed": ("packed", "off"), "shared": ("packed", "on"), "buckets": ("buckets", "off"), "rows": ("rows", "off")}


@pytest.mark.slow  # a program for each shape of each layout: 17 seconds
def test_the_loss_of_an_epoch_is_the_same_in_every_layout(folder, monkeypatch):
    monkeypatch.setattr(prefixes, "SHORTEST", 4)
    config, base = tiny_config(folder), load_base(folder / "base")
    config.train.batch_size, config.optimizer.learning_rate, config.optimizer.warmup = 1, 1e-12, 0
    mesh, found, steps, tokens = make_mesh(), {}, {}, {}
    for name, (config.data.layout, config.data.share_prefixes) in LAYOUTS.items():
        inputs = prepare(config, base.tokenizer)
        prepared = prepare_model(config, base, mesh)
        step, place = compile_step(config, prepared, mesh)
        state, total, steps[name] = prepared.state, 0.0, inputs.train.steps_per_epoch
        tokens[name] = inputs.report["splits"]["train"]["tokens a row"]
        for number in range(steps[name]):
            state, metrics = step(state, prepared.frozen, place(inputs.train.at(number)))
            total += float(metrics["loss"]) * float(metrics["tokens"])
        found[name] = total
    assert found == pytest.approx(dict.fromkeys(LAYOUTS, found["rows"]), rel=1e-5)
    assert steps["shared"] < steps["packed"] <= steps["buckets"] < steps["rows"] == 70
    assert tokens["shared"] < tokens["packed"] <= tokens["buckets"] < tokens["rows"] == 32


def test_a_layout_of_rows_cannot_share(folder):
    config = tiny_config(folder)
    config.data.layout, config.data.share_prefixes = "rows", "on"
    with pytest.raises(ValueError, match="packed layout only"):
        prepare(config, tokenizer(folder))
