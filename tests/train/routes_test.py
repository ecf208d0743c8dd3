"""Rows that are routed by a field of their records are those of their own adapters alone, in training, evaluation and generation."""

import json

import jax
import numpy as np
import pytest
from tiny import moved
from tiny_run import ANIMALS, COLOURS, tiny_config

from peftjax.data.records import Record
from peftjax.interop.base import load_base
from peftjax.nn.tree import flatten
from peftjax.peft import BatchSplit, Stack, attach, combine, compose, lora, partition, pfeiffer, prefix
from peftjax.peft.composition import from_data
from peftjax.peft.partition import nothing
from peftjax.peft.route import routed_by
from peftjax.peft.spec import from_data as method_of
from peftjax.train.adapters import of_run
from peftjax.train.config import check, composition, methods
from peftjax.train.export import export
from peftjax.train.inputs import prepare
from peftjax.train.loop import run
from peftjax.train.loss import token_losses
from peftjax.train.result import read_result
from peftjax.train.routes import arrange, for_row, routes_of, value_of, with_routes
from peftjax.train.startup import make_model
from peftjax.train.task import task_for

KINDS = ("plain", "polite")


def write_kinds(path):
    """The task of `tiny_run` in two tones, which only the field says: `red cat`, or `red cat please`."""
    rows = []
    for number, animal in enumerate(ANIMALS):
        split = {14: "validation", 15: "test"}.get(number, "train")
        for colour in COLOURS:
            for kind in KINDS:
                rows.append({"prompt": f"paint the {animal} {colour}", "response": f"{colour} {animal}" + " please" * (kind == "polite"),
                             "id": f"{animal} {colour} {kind}", "group": animal, "split": split, "tone": kind})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of a run with an adapter for each tone, of two methods, under one for the task."""
    folder = tmp_path_factory.mktemp("routes")
    config = tiny_config(folder)
    config.data.name = str(write_kinds(folder / "kinds.jsonl"))
    config.peft = methods(lora(rank=4, name="plain"), prefix(length=2, name="polite"), pfeiffer(size=4, name="polite"),
                          pfeiffer(size=4, name="task"))
    config.compose = {"stack": [{"batch_split": ["plain", "polite"], "at": "tone"}, "task"]}
    config.train.steps, config.eval.before, config.eval.every, config.data.length = 6, False, 0, 64
    return config


@pytest.fixture(scope="module")
def composed(config):
    """(base, its tree with the adapters of the config, composed)."""
    base = load_base(config.base.uri)
    attached = moved(attach(base.params, [method_of(one.to_dict()) for one in config.peft], jax.random.key(0)))
    return base, compose(attached, composition(config))


@pytest.mark.slow  # a run, and answers of it in three ways: half a minute
def test_each_row_of_a_run_is_evaluated_and_answered_as_by_its_own_adapters_alone(config, tmp_path):
    folder = run(config, tmp_path / "run")
    there, found = of_run(folder), read_result(folder)["predictions"]
    assert routed_by(there.params) == ("tone",)
    for kind in KINDS:
        alone = for_row(there.params, composition(there.config), {"tone": kind})
        assert routed_by(alone) == () and alone["blocks"]["mlp_out"].keys() == {"task"} | ({"polite"} & {kind})
        inputs = prepare(there.config, there.base.tokenizer)
        evaluator = task_for(there.config, there.base.config).evaluator(
            there.model(), there.base.tokenizer, there.config, inputs.held, lambda _: None)
        wanted = evaluator.run(6, "test", nothing(alone), alone, None)["predictions"]
        own = [(item, by) for item, by in zip(found, wanted, strict=True) if item["id"].endswith(kind)]
        assert len(own) == 5
        for item, by in own:
            assert item["id"] == by["id"] and item["nll_after"] == pytest.approx(by["nll"], rel=1e-4) and item["after"] == by["prediction"]
    written = export(there, tmp_path / "plain", ("peft", "merged"), name="plain", say=lambda _: None)
    assert [path.name for path in written] == ["peft", "merged"]


def test_gradients_of_a_packed_batch_are_those_of_the_rows_of_each_kind_alone(config, composed):
    base, params = composed
    inputs = prepare(config, base.tokenizer)
    batch = inputs.train.at(0)._replace(rows=None)
    numbers = batch.routes["tone"]
    assert set(numbers) == {0, 1} and (batch.segments.max(axis=1) > 1).all()  # several rows to a line, lines of both kinds
    plan, model = composition(config), make_model(base.config, config.model, ())

    def gradients(params, weights):
        trainable, frozen = partition(params)

        def loss(trainable):
            losses, _ = token_losses(model, arrange(combine(trainable, frozen), batch), batch)
            return (losses * weights).sum()

        return flatten(jax.jit(jax.grad(loss))(trainable))

    mixed = gradients(params, batch.weights)
    alone = [gradients(for_row(params, plan, {"tone": kind}), batch.weights * (numbers == i)[:, None])
             for i, kind in enumerate(KINDS)]
    assert mixed.keys() == alone[0].keys() | alone[1].keys()
    for path, found in mixed.items():
        wanted = sum(np.asarray(each[path]) for each in alone if path in each)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max(), err_msg=path)
        assert np.any(wanted) or "/task/" not in path


def test_a_row_is_for_the_child_that_has_the_adapter_of_its_value():
    plan = Stack(BatchSplit("en", Stack("de", "formal"), at="lang"), BatchSplit("shop", "bank", at="domain"))
    routes = routes_of(plan)
    assert routes == {"lang": {"en": 0, "de": 1, "formal": 1}, "domain": {"shop": 0, "bank": 1}}
    record = Record("a", "b", lang="de", group="bank/1", extra={"tone": 3})
    assert [value_of(record, field) for field in ("lang", "domain", "tone", "other")] == ["de", "bank", "3", ""]
    assert routes_of(None) == routes_of(BatchSplit("a", "b", sizes=(1, 2))) == {}
    with pytest.raises(ValueError, match="holds 'en' in two of its children"):
        routes_of(from_data({"batch_split": ["en", {"stack": ["en", "de"]}], "at": "lang"}))
    with pytest.raises(ValueError, match="two batch_splits are at 'lang'"):
        routes_of(Stack(BatchSplit("en", "de", at="lang"), BatchSplit("de", "en", at="lang")))


def test_values_without_an_adapter_are_refused_or_are_nobodys(config, composed):
    inputs = prepare(config, composed[0].tokenizer)
    assert set(inputs.held["general"].tokens.routes["tone"]) == {-1}
    rows, routes = inputs.held["test"].tokens, {"tone": {"plan": 0, "polite": 1}}
    records = inputs.held["test"].records
    assert set(with_routes(rows, records, routes, strict=False).routes["tone"]) == {-1, 1}
    with pytest.raises(ValueError, match=r"has tone 'plain', for which config.compose has no adapter \(did you mean 'plan'"):
        with_routes(rows, records, routes)


def test_what_is_asked_for_is_a_field_and_an_adapter_of_it(config, composed):
    params, plan = composed[1], composition(config)
    with pytest.raises(ValueError, match=r"nothing is routed by 'tune' \(did you mean 'tone'"):
        for_row(params, plan, {"tune": "plain"})
    with pytest.raises(ValueError, match=r"no adapter is for tone 'polit' \(did you mean 'polite'"):
        for_row(params, plan, {"tone": "polit"})
    check(config)
