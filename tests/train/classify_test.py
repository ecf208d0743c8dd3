"""Classification from config to report: learnt, resumed bit for bit, and evaluated as the model itself says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoder import tiny_config

from peftjax.evals.classes import macro_f1
from peftjax.interop.base import load_base
from peftjax.models.encoder import Encoder
from peftjax.peft import classifier, head_only, lora, p_tuning, prompt_tuning
from peftjax.peft.partition import combine, nothing
from peftjax.train.adapters import of_run
from peftjax.train.checkpoint import stored_specification
from peftjax.train.config import methods
from peftjax.train.inputs import prepare
from peftjax.train.journal import Journal
from peftjax.train.logs import read_metrics
from peftjax.train.loop import run
from peftjax.train.prepare import prepare_model
from peftjax.train.sharding import make_mesh
from peftjax.train.task import task_for


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tmp_path_factory.mktemp("classify")


@pytest.fixture(scope="module")
def finished(tiny):
    return run(tiny_config(tiny), tiny / "finished")


def losses(folder):
    return [(line["step"], line["loss"]) for line in read_metrics(folder) if "loss" in line]


def test_a_run_learns_and_leaves_result_and_report(finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["labels"] == ["off", "on", "question"]
    head = stored_specification(finished / "checkpoints")["methods"][1]
    assert head["method"] == "classifier" and head["labels"] == result["labels"]  # whoever attaches it again needs no data
    assert [e["step"] for e in result["evaluations"]] == [8, 16, 24]  # the base has no head for these labels
    last = result["evaluations"][-1]
    assert last["loss"] < np.log(3) / 2 and "forgetting" not in last
    accuracy = last["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"] and accuracy["n"] == 15 and accuracy["mean"] > 0.8
    items = result["predictions"]
    assert last["macro_f1"] == pytest.approx(macro_f1([i["after"] for i in items], [i["reference"] for i in items]))
    assert accuracy["mean"] == np.mean([item["accuracy_after"] for item in items])
    report = (finished / "report.md").read_text()
    assert "macro f1" in report and "nats per text" in report
    assert "|  | step 24 | records |" in report  # one of the test set, and none of it before


def test_stopped_anywhere_the_same_command_goes_on_bit_for_bit(finished, tiny, tmp_path, monkeypatch):
    count = Journal.count

    def stopped_at(last):
        def stopping(self, number, *rest):
            count(self, number, *rest)
            if number == last:
                raise KeyboardInterrupt

        return stopping

    for last in (6, 15):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Journal, "count", stopped_at(last))
            run(tiny_config(tiny), tmp_path)
    run(tiny_config(tiny), tmp_path)
    assert losses(tmp_path) == losses(finished)
    whole, again = (json.loads((folder / "result.json").read_text())["evaluations"] for folder in (finished, tmp_path))
    assert whole == again


@pytest.fixture(scope="module")
def parts(tiny):
    """(config, base, inputs, prepared) with pairs of texts."""
    config = tiny_config(tiny)
    config.data.second = "{other}"
    base = load_base(config.base.uri)
    inputs = prepare(config, base.tokenizer, task=task_for(config, base.config))
    return config, base, inputs, prepare_model(config, base, make_mesh(), inputs.task)


def evaluator(parts, length):
    config, base, inputs, prepared = parts
    config = config.copy_and_resolve_references()
    config.data.length = length
    return inputs.task.evaluator(prepared.model, base.tokenizer, config, inputs.held, lambda _: None)


def test_scores_are_the_models_own_whatever_the_packing(parts):
    _, base, inputs, prepared = parts
    trainable = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), prepared.state.trainable)
    apart = evaluator(parts, 32).log_probabilities("test", trainable, prepared.frozen)
    packed = evaluator(parts, 128).log_probabilities("test", trainable, prepared.frozen)
    np.testing.assert_allclose(packed, apart, atol=1e-5)
    rows, tree = inputs.held["test"].tokens, combine(trainable, prepared.frozen)
    for i in range(2):
        logits = Encoder(base.config).apply({"params": tree}, jnp.asarray(rows.row(i))[None], types=jnp.asarray(rows.row_types(i))[None])
        np.testing.assert_allclose(apart[i], jax.nn.log_softmax(logits)[0], atol=1e-5)


@pytest.mark.slow  # a whole run and programs of three lengths
def test_virtual_tokens_are_trained_and_scored_whatever_the_packing(tiny, tmp_path):
    config = tiny_config(tiny)
    config.peft = methods(prompt_tuning(length=3), p_tuning(length=2, hidden=4, offset=False, name="b"), classifier())
    config.data.length, config.optimizer.learning_rate = 24, 5e-2
    done = run(config, tmp_path / "run")
    first, *_, last = json.loads((done / "result.json").read_text())["evaluations"]
    assert last["loss"] < first["loss"] < 2 and last["metrics"]["accuracy"]["mean"] > 0.5
    there = of_run(done)
    task = task_for(config, there.base.config)
    inputs = prepare(config, there.base.tokenizer, task=task)
    shape = inputs.train.shapes[0]
    assert inputs.train.rows.virtual == 5 and 1 < shape.loss_slots < 8  # several texts a line
    found = {}
    for length in (24, 72):
        config.data.length = length
        evaluator = inputs.task.evaluator(there.model(), there.base.tokenizer, config, inputs.held, lambda _: None)
        found[length] = evaluator.log_probabilities("test", nothing(there.params), there.params)
    np.testing.assert_allclose(found[24], found[72], atol=1e-5)
    row = jnp.asarray(inputs.held["test"].tokens.row(1))[None]
    np.testing.assert_allclose(found[24][1], jax.nn.log_softmax(there.model().apply({"params": there.params}, row))[0], atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(parts):
    broken = jax.tree.map(lambda x: x * np.nan, parts[3].state.trainable)
    with pytest.raises(FloatingPointError, match="loss at step 3 is nan"):
        evaluator(parts, 32).run(3, "test", broken, parts[3].frozen)


def test_a_base_with_its_own_labels_is_measured_before_and_trained_on(tiny, tmp_path):
    task = tmp_path / "own.jsonl"
    rows = [json.loads(line) for line in (tiny / "task.jsonl").read_text().splitlines()]
    names = {"on": "LABEL_0", "off": "LABEL_1", "question": "LABEL_2"}
    task.write_text("".join(json.dumps(row | {"response": names[row["response"]]}) + "\n" for row in rows))
    config = tiny_config(tiny)
    config.data.name, config.peft, config.train.steps, config.eval.every = str(task), methods(lora(rank=2), head_only()), 2, 0
    result = json.loads((run(config, tmp_path / "run") / "result.json").read_text())
    assert [e["step"] for e in result["evaluations"]] == [0, 2]
    assert result["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"] and result["predictions"][0]["before"] in result["labels"]


def test_a_label_that_training_never_saw_is_named(tiny, tmp_path):
    task = tmp_path / "odd.jsonl"
    odd = {"prompt": "in", "response": "odd", "group": "odd", "split": "test"}
    task.write_text((tiny / "task.jsonl").read_text() + json.dumps(odd) + "\n")
    config = tiny_config(tiny)
    config.data.name = str(task)
    with pytest.raises(ValueError, match="has the label 'odd'.*config.data.labels"):
        run(config, tmp_path / "run")
