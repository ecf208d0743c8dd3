"""Evaluations: a run's own test set again, any base and adapter, an interruption, domains and languages, refusals."""

import json

import pytest
import tiny_encoder
from tiny_run import tiny_config, write_base

from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.native import write_native
from peftjax.peft import lora
from peftjax.train import assess as module
from peftjax.train.adapters import ready
from peftjax.train.assess import assess, question, summary
from peftjax.train.assess_harness import assess_harness
from peftjax.train.config import methods
from peftjax.train.loop import run
from peftjax.train.result import read_result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has learnt some of its task."""
    folder = tmp_path_factory.mktemp("assess")
    config = tiny_config(folder)
    config.peft = methods(lora(rank=8, alpha=32, targets=["all-linear", "embed_tokens"]))
    config.train.steps, config.eval.every, config.checkpoint.every = 60, 0, 30
    return run(config, folder / "run")


def predictions(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def silent(_):
    """Says nothing."""


def write_rows(path, count=12):
    """Rows in three domains and two languages."""
    rows = [
        {"prompt": f"paint the cat {n}", "response": f"{n} cat", "group": f"{'abc'[n % 3]}/{n}", "id": str(n)}
        | {"lang": "en" if n < 8 else "de"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_runs_own_test_rows_give_what_the_run_itself_found(trained, tmp_path):
    folder = assess(question(str(trained)), tmp_path / "out", silent)
    found, before = read_result(folder), read_result(trained)
    again, last = found["evaluations"][0], before["evaluations"][-1]
    assert again["loss"] == pytest.approx(last["loss"], rel=1e-5) and again["metrics"] == last["metrics"]
    assert again["step"] == 60 and found["trainable"] == before["trainable"] and found["lineage"]["run"] == "run"
    answers = {row["id"]: row["after"] for row in before["predictions"]}
    assert {row["id"]: row["prediction"] for row in predictions(folder)} == answers


def test_an_earlier_step_other_data_and_other_fields(trained, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    asked = question(str(trained), step=30, changes={"data.name": str(rows), "eval.max_new": 3, "eval.rows": 5})
    assert asked.assess.split == "all" and asked.data.prompt == "{prompt}"
    folder = assess(asked, tmp_path / "out", silent)
    assert len(predictions(folder)) == 5 and read_result(folder)["evaluations"][0]["step"] == 30


def test_the_same_command_finds_it_done_and_another_is_refused(trained, tmp_path, monkeypatch):
    folder = assess(question(str(trained)), tmp_path / "out", silent)
    (folder / "report.md").unlink()
    monkeypatch.setattr(module, "load_subject", None)
    assert assess(question(str(trained)), tmp_path / "out", silent) == folder and (folder / "report.md").exists()
    with pytest.raises(ValueError, match="another config.*assess.step: 30"):
        assess(question(str(trained), step=30), tmp_path / "out", silent)


def test_a_changed_file_is_another_question(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    one = question(base="x", changes={"data.name": str(rows)})
    write_rows(rows, 13)
    other = question(base="x", changes={"data.name": str(rows)})
    assert one.assess.inputs.data != other.assess.inputs.data


def test_an_interrupted_evaluation_goes_on(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    asked = question(str(trained))
    whole = predictions(assess(asked, tmp_path / "whole", silent))

    def stop(line):
        if line.startswith("4 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assess(asked, tmp_path / "out", stop)
    partial = tmp_path / "out" / "predictions.partial.jsonl"
    assert len(partial.read_text().splitlines()) == 4 and not (tmp_path / "out" / "result.json").exists()
    with open(partial, "a") as file:
        file.write('{"id": "torn')
    said = []
    again = predictions(assess(asked, tmp_path / "out", said.append))
    assert again == whole and not partial.exists()
    assert any(line.startswith("going on after 4 of 5") for line in said) and "5 of 5 rows done" in said


def test_domains_and_languages_of_a_base_alone(tmp_path):
    base, rows = write_base(tmp_path / "base"), write_rows(tmp_path / "rows.jsonl")
    changes = {"data.name": str(rows), "eval.metrics": ("exact_match", "text_match"), "eval.max_new": 4}
    folder = assess(question(base=str(base), changes=changes), tmp_path / "out", silent)
    found, items = read_result(folder), predictions(folder)
    assert [item["id"] for item in items] == [str(n) for n in range(12)]
    assert set(items[0]) == {"id", "group", "lang", "prompt", "reference", "prediction", "nll", "tokens", "exact_match", "text_match"}
    metrics = ["exact_match", "text_match"]
    assert found["domains"] == {d: summary([i for i in items if i["group"].startswith(d)], metrics) for d in "abc"}
    assert found["languages"] == {lang: summary([i for i in items if i["lang"] == lang], metrics) for lang in ("de", "en")}
    assert found["evaluations"][0] == {"step": 0, "split": "all"} | summary(items, metrics)
    report = (folder / "report.md").read_text()
    assert "| a | 4 | " in report and "| de | 4 | " in report and "![Metrics by domain](domains.png)" in report
    assert (folder / "domains.png").stat().st_size > 5000 and "Adapter: none" in report


def test_an_adapter_from_a_directory(trained, tmp_path):
    there = ready(str(trained))
    write_native(tmp_path / "mine", extract(there.params, there.methods), there.base)
    own = read_result(assess(question(str(trained)), tmp_path / "own", silent))
    asked = question(base=there.base.uri, adapter=str(tmp_path / "mine"), split="test", changes={"data.name": own["data"]["name"]})
    asked.data.length, asked.eval.max_new = own["config"]["data"]["length"], own["config"]["eval"]["max_new"]
    found = read_result(assess(asked, tmp_path / "out", silent))
    assert found["evaluations"][0]["loss"] == pytest.approx(own["evaluations"][0]["loss"], rel=1e-5)
    assert found["evaluations"][0]["metrics"] == own["evaluations"][0]["metrics"] and found["trainable"] == own["trainable"]


def test_texts_without_prompts_have_losses_only(tmp_path):
    base = write_base(tmp_path / "base")
    rows = [{"response": f"the {animal} is an animal"} for animal in ("cat", "dog")]
    rows += [{"prompt": "paint the cat red", "response": "red cat", "id": "asked"}]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"data.name": str(tmp_path / "text.jsonl"), "eval.max_new": 2}
    folder = assess(question(base=str(base), changes=changes), tmp_path / "out", silent)
    assert ["prediction" in item for item in predictions(folder)] == [False, False, True]
    assert read_result(folder)["evaluations"][0]["metrics"]["exact_match"]["n"] == 1


@pytest.mark.parametrize(("asked", "message"), [
    ({"run": "runs/none", "base": "x"}, "--run excludes --base"),
    ({"run": "runs/none"}, "is no work directory"),
    ({"step": 3}, "--step belongs to a run"),
    ({}, "no data: name a built-in set"),
    ({"changes": {"data.name": "qa", "data.promt": "x"}}, r"data.promt is no field.*did you mean 'data.prompt'"),
    ({"changes": {"data.name": "qa", "eval.metrics": ("exact_mach",)}}, "did you mean 'exact_match'"),
    ({"changes": {"data.name": "qa", "data.prompt": "{a b}"}}, "is not a plain field name"),
    ({"changes": {"data.name": "qa"}, "split": "tests"}, "split is 'tests' .did you mean 'test'"),
])
def test_questions_that_cannot_be_answered(asked, message):
    with pytest.raises(ValueError, match=message):
        question(**asked)


def test_an_empty_split_and_a_missing_file(tmp_path):
    base, rows = write_base(tmp_path / "base"), write_rows(tmp_path / "rows.jsonl", 1)
    with pytest.raises(ValueError, match="no group of .* falls into the split"):
        for split in ("validation", "test"):
            assess(question(base=str(base), split=split, changes={"data.name": str(rows)}), tmp_path / split, silent)
    with pytest.raises(FileNotFoundError, match="no file"):
        assess(question(base=str(base), changes={"data.name": str(tmp_path / "none.jsonl")}), tmp_path / "out", silent)


@pytest.mark.slow  # trains and evaluates a classifier: seven seconds; its metrics are tested in classify_test
def test_a_classifier_is_evaluated_by_its_labels(tmp_path):
    trained = run(tiny_encoder.tiny_config(tmp_path), tmp_path / "run")
    folder = assess(question(str(trained)), tmp_path / "out", silent)
    found, last = read_result(folder), read_result(trained)["evaluations"][-1]
    again = found["evaluations"][0]
    assert again["metrics"] == last["metrics"] and again["macro_f1"] == pytest.approx(last["macro_f1"])
    assert again["loss"] == pytest.approx(last["test_loss"], rel=1e-5) and "perplexity" not in again
    assert found["labels"] == ["off", "on", "question"] and "macro f1" in (folder / "report.md").read_text()
    with pytest.raises(ValueError, match="is an encoder; the harness"):
        assess_harness(question(str(trained)), ["x"], workdir=tmp_path / "harness", say=silent)


@pytest.mark.slow  # imports the harness and runs it: thirteen seconds
def test_the_harness_in_a_work_directory(trained, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="the harness comes with the extra evals")
    rows = write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.yaml").write_text(
        f"task: tiny_cats\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{response}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n"
    )
    asked, said = question(str(trained), needs_data=False), []
    folder = assess_harness(asked, ["tiny_cats"], str(tmp_path / "tasks"), tmp_path / "out", limit=3, say=said.append)
    result = json.loads((folder / "result.json").read_text())
    assert "exact_match,none" in result["results"]["tiny_cats"] and result["lineage"]["step"] == 60
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [sample["doc"]["id"] for sample in samples] == ["0", "1", "2"]
    monkeypatch.setattr("peftjax.train.assess_harness.load_subject", None)
    assert assess_harness(asked, ["tiny_cats"], str(tmp_path / "tasks"), tmp_path / "out", limit=3, say=said.append) == folder
    assert said[0] == said[2]
