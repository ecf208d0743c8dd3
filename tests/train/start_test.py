"""Training on from an adapter: it begins where the other stopped, leaves the base alone, and is resumed only from the same values."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_bases import GOLDEN
from tiny import equal_trees, moved
from tiny_run import tiny_config

from peftjax.interop.base import load_base
from peftjax.interop.exchange.adapter import digest, extract
from peftjax.interop.exchange.native import write_native
from peftjax.interop.exchange.peft_write import write_peft
from peftjax.nn.tree import flatten
from peftjax.peft import adapters, attach, detach, lora, pfeiffer
from peftjax.peft.fusion import fusion
from peftjax.peft.partition import combine, partition
from peftjax.peft.spec import from_data
from peftjax.train.adapters import of_run
from peftjax.train.checkpoint import Checkpoints, stored_specification
from peftjax.train.config import check, loaded, methods
from peftjax.train.inputs import prepare
from peftjax.train.journal import Journal
from peftjax.train.logs import read_metrics
from peftjax.train.loop import run
from peftjax.train.loss import token_losses
from peftjax.train.prepare import prepare_model
from peftjax.train.sharding import make_mesh
from peftjax.train.start import start_of, with_start
from peftjax.train.stored import restored


def config_of(folder, adapter=None, *more):
    """A few steps without dropout, of a LoRA, or on from an adapter with more methods beside it."""
    config = tiny_config(folder)
    config.peft = methods(*more) if adapter else methods(lora(rank=3, alpha=5.0, targets=("q_proj", "down_proj"), lora_bias=True))
    config.adapter.path = str(adapter or "")
    config.train.steps, config.checkpoint.every, config.eval.every = 6, 2, 0
    config.eval.before, config.eval.generate, config.eval.general.name = False, False, ""
    return config


def prepared_for(config):
    """(base, what the loop is given, the adapters it starts from)."""
    base = load_base(config.base.uri)
    config, starts = with_start(config, base)
    return base, prepare_model(config, base, make_mesh(-1, 1), starts=starts), starts


def state_of(config, workdir):
    """(base, prepared, the last state) of a finished run."""
    base, prepared, _ = prepared_for(config)
    folder = workdir / "checkpoints"
    with Checkpoints(folder, stored_specification(folder)) as checkpoints:
        return base, prepared, restored(checkpoints, prepared)[0]


def losses(workdir):
    return [line["loss"] for line in read_metrics(workdir) if "loss" in line]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def first(tiny):
    """(base, its tree after the first run, the run's methods, adapter directories by form)."""
    config = config_of(tiny)
    base, prepared, state = state_of(config, run(config, tiny / "first"))
    params, attached = combine(state.trainable, prepared.frozen), [from_data(method.to_dict()) for method in config.peft]
    adapter = extract(params, attached)
    write_peft(tiny / "peft", adapter, base.config, base.uri)
    write_native(tiny / "own", adapter, base)
    return base, params, adapter, {"HF PEFT": tiny / "peft", "peftjax": tiny / "own"}


@pytest.fixture(scope="module")
def second(tiny, first):
    """The work directory of a run on from the first one's adapter in HF PEFT's form."""
    return run(config_of(tiny, first[3]["HF PEFT"]), tiny / "second")


def test_a_config_without_an_adapter_stays_as_it_is(tiny, first):
    config = config_of(tiny)
    assert with_start(config, first[0]) == (config, ()) and start_of(()) == {}


@pytest.mark.parametrize("form", ["HF PEFT", "peftjax"])
@pytest.mark.parametrize("name", ["default", "tone"])
def test_it_begins_with_the_adapters_values_whatever_the_form_and_the_name(form, name, tiny, first):
    config = config_of(tiny, first[3][form])
    config.adapter.name = name
    base, prepared, (start,) = prepared_for(config)
    params = combine(prepared.state.trainable, prepared.frozen)
    assert adapters(params) == [name] and digest(start.adapter) == digest(first[2])
    assert digest(extract(params, start.adapter.methods, name)) == digest(first[2])
    equal_trees(detach(params), base.params)
    assert start_of([start]) == {"start": {name: digest(first[2])}}


def test_the_first_loss_is_that_of_the_adapter_it_starts_from(tiny, first, second):
    base, params, _, folders = first
    config = config_of(tiny, folders["HF PEFT"])
    batch, model = prepare(config, base.tokenizer).train.at(0), prepared_for(config)[1].model
    nll, _ = jax.jit(lambda tree: token_losses(model, tree, batch._replace(rows=None)))(params)
    weights = np.asarray(batch.weights)
    continued = float((np.asarray(nll) * weights).sum() / weights.sum())
    assert losses(second)[0] == pytest.approx(continued, rel=1e-5)
    assert losses(second)[0] != pytest.approx(losses(tiny / "first")[0], rel=1e-3)  # of the same batch, from nothing


def test_it_trains_on_and_leaves_the_base_and_its_scales_alone(tiny, first, second):
    config = config_of(tiny, first[3]["HF PEFT"])
    base, prepared, state = state_of(config, second)
    params = combine(state.trainable, prepared.frozen)
    equal_trees(detach(params), base.params)
    after = extract(params, first[2].methods)
    for path, piece in first[2].pieces.items():
        for field, array in piece.arrays.items():
            assert np.array_equal(after.pieces[path].arrays[field], array) == (field == "scale"), (path, field)
    write_peft(tiny / "peft2", after, base.config, base.uri)  # and it can be handed on again
    assert (tiny / "peft2" / "adapter_config.json").read_bytes() == (tiny / "peft" / "adapter_config.json").read_bytes()


def interrupted(config, workdir, monkeypatch, after: int):
    """The run, stopped in the middle of a step."""
    with monkeypatch.context() as patched:
        count = Journal.count

        def stop(self, number, *rest):
            if number > after:
                raise KeyboardInterrupt
            return count(self, number, *rest)

        patched.setattr(Journal, "count", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, workdir)


def test_stopped_and_gone_on_with_is_never_stopped(tiny, first, second, tmp_path, monkeypatch, capsys):
    config = config_of(tiny, first[3]["HF PEFT"])
    interrupted(config, tmp_path, monkeypatch, 3)
    run(config, tmp_path)
    assert "resumed at step 2" in capsys.readouterr().out
    assert losses(tmp_path) == losses(second)
    equal_trees(state_of(config, tmp_path)[2].trainable, state_of(config, second)[2].trainable)


def test_another_adapter_in_its_place_is_refused_on_resuming(tiny, first, tmp_path, monkeypatch):
    folder = tmp_path / "peft"
    shutil.copytree(first[3]["HF PEFT"], folder)
    config = config_of(tiny, folder)
    interrupted(config, tmp_path / "run", monkeypatch, 3)
    pieces = {path: piece._replace(arrays={**piece.arrays, "b": piece.arrays["b"] * 2}) for path, piece in first[2].pieces.items()}
    write_peft(folder, type(first[2])(first[2].methods, pieces), first[0].config, first[0].uri)
    with pytest.raises(ValueError, match="start"):
        run(config, tmp_path / "run")


def test_a_second_method_beside_it_is_trained_too(tiny, first, tmp_path):
    config = config_of(tiny, first[3]["peftjax"], pfeiffer(size=3, name="net"))
    base, prepared, _ = prepared_for(config)
    before = combine(prepared.state.trainable, prepared.frozen)
    assert adapters(before) == ["default", "net"]
    base, prepared, state = state_of(config, run(config, tmp_path))
    params = combine(state.trainable, prepared.frozen)
    assert digest(extract(params, first[2].methods, "default")) != digest(first[2])
    assert np.any(params["blocks"]["mlp_out"]["net"].up)
    equal_trees(detach(params), base.params)


def test_an_adapter_that_is_not_there_or_not_for_this_base_is_refused(tiny, first, tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        run(config_of(tiny, tmp_path / "nowhere"), tmp_path / "run")
    with pytest.raises(ValueError, match="does not fit this base"):
        run(config_of(tiny, GOLDEN / "peft" / "gpt2_all"), tmp_path / "run2")


def test_one_made_for_another_base_needs_to_be_asked_for(tiny, first, tmp_path):
    base, _, adapter, _ = first
    write_native(tmp_path, type(adapter)(adapter.methods, adapter.pieces, base="b" * 64), base)
    config = config_of(tiny, tmp_path)
    with pytest.raises(ValueError, match="was made for another base.*other_base"):
        with_start(config, base)
    config.adapter.other_base = True
    assert with_start(config, base)[1][0].adapter.base == "b" * 64


def moved_adapter(base, methods, seed):
    """An adapter for this base in which every trained value is moved off its start."""
    params = moved(attach(base.params, methods, jax.random.key(seed)), 0.3)
    return extract(params, methods)


@pytest.fixture(scope="module")
def beside(tiny, first):
    """(config, work directory) of a run that trains a fusion over two held adapters, and a third adapter on."""
    base = first[0]
    config = config_of(tiny, first[3]["HF PEFT"])
    for seed, name in enumerate(("en", "de")):
        own = (pfeiffer(size=3, dropout=0.2), lora(rank=2, targets=("v_proj",), dropout=0.2))
        write_native(tiny / name, moved_adapter(base, own, seed), base)
    config.adapter.name = "tone"
    config.adapters = [loaded(str(tiny / name), name, train=False) for name in ("en", "de")]
    config.peft = methods(fusion(of=("en", "de")))
    config.compose = {"stack": ["tone", {"fuse": ["en", "de"]}]}
    return config, run(config, tiny / "beside")


def test_a_fusion_is_trained_over_adapters_that_are_held(tiny, beside):
    config, folder = beside
    _, prepared, starts = prepared_for(config)
    state = state_of(config, folder)[2].trainable
    assert {path.split("/")[-2] for path in flatten(prepared.state.trainable)} == {"tone", "fusion"} and not prepared.dropout
    assert losses(folder)[-1] < losses(folder)[0]
    for name in ("en", "de"):  # a run needs them no more
        shutil.rmtree(tiny / name)
    found = of_run(folder)
    for start in starts:
        there = digest(extract(found.params, start.adapter.methods, start.name))
        assert (there == digest(start.adapter)) == (start.name != "tone"), start.name
    equal_trees(partition(found.params, ["tone", "fusion"])[0], partition(combine(state, prepared.frozen), ["tone", "fusion"])[0])


def test_what_is_loaded_has_a_path_and_a_name_of_its_own(tiny, first):
    config = config_of(tiny, first[3]["peftjax"])
    config.adapters = [loaded("there", "default")]
    with pytest.raises(ValueError, match="two adapters that are loaded are called 'default'"):
        check(config)
    config.adapters = [loaded("", "en")]
    with pytest.raises(ValueError, match=r"config.adapters\[0\].path is empty; name the directory of the adapter 'en'"):
        check(config)
    config.adapters[0].trains = False
    with pytest.raises(ValueError, match=r"config.adapters\[0\].trains is not a field \(did you mean 'train'"):
        check(config)
    config.adapters, config.adapter.train = [], False
    with pytest.raises(ValueError, match="nothing would be trained"):
        check(config)
