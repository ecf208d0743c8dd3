"""A base made ready with the adapter of a run or of a directory: what a run found, step by step, and what is refused."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import tiny
from tiny_run import tiny_config, write_base

from peftjax.files import replacing
from peftjax.interop.base import load_base
from peftjax.interop.exchange.adapter import extract
from peftjax.interop.exchange.native import write_native
from peftjax.interop.exchange.peft_write import write_peft
from peftjax.interop.hf import write_directory
from peftjax.models.decoder import cut
from peftjax.nn.tree import flatten
from peftjax.peft import attach, fusion, houlsby, lora, merge, pfeiffer, prompt_tuning
from peftjax.peft.partition import partition
from peftjax.train import adapters as module
from peftjax.train.adapters import config_of, of_adapter, of_base, of_run, ready
from peftjax.train.assess import load_subject, question
from peftjax.train.config import methods
from peftjax.train.inputs import prepare
from peftjax.train.loop import run
from peftjax.train.result import read_result
from peftjax.train.task import task_for


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, evaluated and kept at the second and the last."""
    folder = tmp_path_factory.mktemp("adapters")
    config = tiny_config(folder)
    config.peft = methods(lora(rank=4, alpha=32, targets=["q_proj", "v_proj", "down_proj"]))
    config.train.steps, config.eval.before, config.eval.every, config.eval.generate = 4, False, 2, False
    return run(config, folder / "run")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The run's adapter, in our own form and in HF PEFT's, which names another base."""
    folder, there = tmp_path_factory.mktemp("exported"), of_run(trained)
    adapter = extract(there.params, there.methods, base=there.base.fingerprint, tokenizer=there.base.tokenizer.fingerprint)
    write_native(folder / "own", adapter, there.base)
    write_peft(folder / "peft", adapter, there.base.config, "org/elsewhere")
    return folder


def changed_base(trained, folder):
    """The base of the run with one weight changed."""
    on = load_base(config_of(trained).base.uri)
    write_directory(folder, on.config, on.params | {"embed": {"embedding": on.params["embed"]["embedding"].at[0, 0].add(1.0)}})
    on.tokenizer.write_directory(folder)
    return folder


def same(ours, theirs):
    """Whether two trees hold the same trained values."""
    one, other = (flatten(partition(params)[0]) for params in (ours, theirs))
    return one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)


@pytest.mark.parametrize("step", [2, 4, None])
def test_a_run_gives_the_loss_that_it_found_itself(trained, step):
    there = of_run(trained, step)
    wanted = {found["step"]: found for found in read_result(trained)["evaluations"] if found["losses_of"] == "validation"}
    task = task_for(there.config, there.base.config)
    inputs = prepare(there.config, there.base.tokenizer, task=task)
    evaluator = task.evaluator(there.model(), there.base.tokenizer, there.config, inputs.held, lambda _: None)
    loss = evaluator.row_losses("validation", *partition(there.params)).summary()["loss"]
    assert loss == pytest.approx(wanted[step or 4]["loss"], rel=1e-5) and wanted[2]["loss"] != pytest.approx(wanted[4]["loss"], rel=1e-4)
    assert there.lineage["step"] == (step or 4) and there.lineage["run"] == "run" and there.names() == ["default"]


def test_layers_of_a_run_or_an_adapter_can_be_off(trained, exported):
    base = of_run(trained).base
    off = ready(str(trained), drop_layers=[0, 1])
    tiny.equal_trees(merge(off.params), base.params)
    half = ready(base=base.uri, adapter=str(exported / "own"), drop_layers=[1])
    assert half.params["blocks"]["attn"]["q"]["kernel"].scale.tolist() == [8, 0]
    tiny.equal_trees(load_subject(question(str(trained), drop_layers=(1,))).params, half.params)
    assert question(str(trained)).assess.get("drop_layers") is None
    with pytest.raises(ValueError, match="--drop_layers belongs to a run"):
        ready(base=base.uri, drop_layers=[0])
    with pytest.raises(ValueError, match=r"layers \[2\] are not among layers 0 to 1"):
        ready(str(trained), drop_layers=[2])


def test_layers_that_an_adapter_does_not_act_on_cannot_be_off(trained, tmp_path):
    base = of_run(trained).base
    segments = cut(base.params, base.config, (1, 1))
    for method, where in ((lora(layers=[1]), "it acts on 1"), (prompt_tuning(length=2), "it acts outside the layers alone")):
        write_native(tmp_path / type(method).__name__, extract(attach(segments, [method], jax.random.key(0)), (method,)), base)
        with pytest.raises(ValueError, match=f"nothing on layers 0 that could be off: {where}"):
            ready(base=base.uri, adapter=str(tmp_path / type(method).__name__), drop_layers=[0])


@pytest.mark.slow  # trains and evaluates a run of its own: fifteen seconds
def test_a_run_of_composed_adapters_is_composed_again(trained, tmp_path):
    config = tiny_config(trained.parent)
    config.peft = methods(lora(rank=4, name="tone"), *(houlsby(size=4, init="bert", name=name) for name in ("en", "de")),
                          fusion(of=("en", "de"), name="mix"), pfeiffer(size=4, name="task"))  # fmt: skip
    config.compose = {"stack": ["tone", "task", {"fuse": ["en", "de"], "by": "mix"}]}
    config.train.steps, config.eval.before, config.eval.generate = 4, False, False
    there = of_run(run(config, tmp_path / "run"))
    inputs = prepare(there.config, there.base.tokenizer)
    evaluator = task_for(there.config, there.base.config).evaluator(
        there.model(), there.base.tokenizer, there.config, inputs.held, lambda _: None)
    wanted = [found["loss"] for found in read_result(tmp_path / "run")["evaluations"] if found["losses_of"] == "validation"]
    assert evaluator.row_losses("validation", *partition(there.params)).summary()["loss"] == pytest.approx(wanted[-1], rel=1e-5)
    assert there.names() == ["de", "en", "mix", "task", "tone"]
    assert extract(there.params, there.methods, "task").pieces.keys() == {"blocks/0/mlp_out", "blocks/1/mlp_out"}


def test_every_source_by_its_own_words(trained, exported):
    uri = config_of(trained).base.uri
    newest, earlier, alone = ready(str(trained)), ready(str(trained), step=2), ready(base=uri)
    assert same(newest.params, of_run(trained, 4).params) and newest.origin == str(trained)
    assert same(earlier.params, of_run(trained, 2).params) and not same(earlier.params, newest.params)
    assert (alone.names(), alone.methods, alone.params) == ([], (), alone.base.params) and alone.origin == of_base(uri).origin == uri
    on = ready(base=uri, adapter=str(exported / "own"))
    assert same(on.params, newest.params) and on.origin == str(exported / "own") and on.notes == ()
    ids = tiny.tokens(vocab=300)
    np.testing.assert_allclose(tiny.run(on.params, ids, on.model()), tiny.run(newest.params, ids, newest.model()), atol=1e-6)


@pytest.mark.parametrize("adapter", [None, "own"])
def test_the_base_is_the_default_one_unless_said(adapter, trained, exported, monkeypatch):
    uri = config_of(trained).base.uri
    monkeypatch.setattr(module, "SMOLLM2", uri)  # the default itself is large
    there = ready(adapter=adapter and str(exported / adapter))
    assert there.base.uri == uri and there.names() == (["default"] if adapter else [])


@pytest.mark.parametrize(("asked", "message"), [
    ({"run": "runs/none", "base": "x"}, "--run and --base or --adapter exclude each other"),
    ({"run": "runs/none", "adapter": "x"}, "--run and --base or --adapter exclude each other"),
    ({"run": "runs/none", "base": "x", "adapter": "x", "step": 3}, "exclude each other"),
    ({"step": 3}, "--step belongs to a run: name its folder with --run"),
    ({"step": 0, "base": "x"}, "--step belongs to a run"),
    ({"step": 3, "base": "x", "adapter": "x"}, "--step belongs to a run"),
    ({"run": "runs/none"}, "runs/none is no work directory of a run: it has no config.json"),
])
def test_wrong_combinations_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        ready(**asked)


def test_a_step_that_was_not_kept_is_refused(trained):
    with pytest.raises(ValueError, match="no checkpoint of step 3"):
        of_run(trained, 3)


def test_notes_are_kept_and_go_to_stderr(trained, exported, capsys):
    there = of_adapter(str(exported / "peft"), config_of(trained).base.uri)
    note = "it names elsewhere as its base, this is base"
    assert there.notes == (note,)
    assert same(there.params, of_run(trained).params)
    said = capsys.readouterr()
    assert said.err == f"note: {exported / 'peft'}: {note}\n" and said.out == ""


def test_another_base_is_refused_by_its_fingerprint(trained, exported, tmp_path):
    other, before = str(changed_base(trained, tmp_path / "other")), of_run(trained)
    with pytest.raises(ValueError, match=f"was made for another base.*{load_base(other).fingerprint[:16]}.*say other_base"):
        ready(base=other, adapter=str(exported / "own"))
    assert same(ready(base=other, adapter=str(exported / "own"), other_base=True).params, before.params)
    copied = tmp_path / "run"
    shutil.copytree(trained, copied)
    with replacing(copied / "config.json") as partial:
        partial.write_text((trained / "config.json").read_text().replace(before.base.uri, other))
    with pytest.raises(ValueError, match=f"was trained on a base with fingerprint {before.base.fingerprint}, .* has "):
        of_run(copied)


def test_an_adapter_that_lacks_a_piece_is_refused(exported, tmp_path):
    folder = str(write_base(tmp_path / "base"))
    there = of_adapter(str(exported / "own"), folder)
    adapter = extract(there.params, there.methods, base=there.base.fingerprint)
    pieces = {path: piece for path, piece in adapter.pieces.items() if path != "blocks/1/attn/v/kernel"}
    write_native(tmp_path / "cut", dataclasses.replace(adapter, pieces=pieces), there.base)
    with pytest.raises(ValueError, match="missing   blocks/1/attn/v/kernel"):
        of_adapter(str(tmp_path / "cut"), folder)
