"""Bottlenecks that are annealed along a run are as linear as the step says, stopped or not, and end as part of the weights."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, adamw, base, equal_trees, train_batch
from tiny_run import tiny_config

from peftjax.models.decoder import Decoder
from peftjax.nn.kernels import Entry, Kernel
from peftjax.nn.tree import flatten, get, walk
from peftjax.peft import across_layers, attach, houlsby, lora, merge, partition, pfeiffer
from peftjax.peft.anneal import anneal
from peftjax.peft.spec import from_data, to_data
from peftjax.train.adapters import of_run
from peftjax.train.annealing import Annealing, annealing
from peftjax.train.config import methods
from peftjax.train.export import export
from peftjax.train.logs import read_metrics
from peftjax.train.loop import run
from peftjax.train.population import run_population
from peftjax.train.step import make_step, new_state

KEY = jax.random.key(0)
SPAN = (0.25, 0.75)
PATH = "blocks/mlp_out/default/annealed"


def test_the_degree_follows_the_step_between_the_two_ends():
    frozen = partition(attach(base(), [houlsby(size=2, anneal=SPAN), houlsby(size=2, anneal=True, name="manual")], KEY))[1]
    along = annealing([houlsby(anneal=SPAN), houlsby(anneal=True, name="manual"), lora(name="tone")], 8)
    found = [flatten(along(frozen, step)) for step in (0, 2, 3, 4, 5, 6, 8)]
    assert [float(tree[PATH][0]) for tree in found] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert not any(tree["blocks/mlp_out/manual/annealed"].any() for tree in found)
    assert annealing([across_layers(houlsby(anneal=SPAN), name="task")], 8) == Annealing((("task", *SPAN),), 8)


def test_a_step_is_that_of_bottlenecks_annealed_as_far_in_one_program():
    trainable, frozen = partition(attach(base(), [houlsby(size=3, anneal=SPAN)], KEY))
    optimiser = adamw()
    along = jax.jit(make_step(Decoder(TINY), optimiser, follow=annealing([houlsby(anneal=SPAN)], 4)))
    plain = jax.jit(make_step(Decoder(TINY), optimiser))
    state = other = new_state(trainable, optimiser, KEY)
    for number, t in enumerate((0.0, 0.0, 0.5, 1.0)):
        state, _ = along(state, frozen, train_batch(seed=number))
        other, _ = plain(other, anneal(frozen, t), train_batch(seed=number))
        for path, leaf in flatten(other.trainable).items():
            np.testing.assert_allclose(flatten(state.trainable)[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)
    assert along._cache_size() == 1
    last, curved = (plain(other, tree, train_batch(seed=9))[0].trainable for tree in (anneal(frozen, 1.0), frozen))
    assert np.abs(get(curved, "blocks/mlp_out/default").up - get(last, "blocks/mlp_out/default").up).max() > 1e-5


def test_spans_are_data_and_those_that_cannot_be_are_refused():
    assert from_data(to_data(houlsby(size=2, anneal=SPAN))) == houlsby(size=2, anneal=SPAN) == houlsby(size=2, anneal=list(SPAN))
    for span in ((0.8, 0.2), (0.5, 0.5), (0.2,), (-0.1, 1), (0.5, 1.1)):
        with pytest.raises(ValueError, match="is no bool and not two rising parts of a run, as in"):
            houlsby(anneal=span)
    with pytest.raises(ValueError, match="bottlenecks of 'default' are annealed over .*; state one span"):
        annealing([houlsby(anneal=SPAN), pfeiffer(anneal=(0.0, 1.0))], 8)


def config_of(folder, anneal=SPAN, seed=0):
    config = tiny_config(folder)
    config.peft, config.train.seed = methods(houlsby(size=4, anneal=anneal), lora(rank=2, targets="down_proj")), seed
    config.train.steps, config.checkpoint.keep_every = 8, 2
    config.eval.before, config.eval.generate, config.eval.every, config.eval.general.name = False, False, 0, ""
    return config


def losses(folder):
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


@pytest.mark.slow  # two runs, a population of two and an export: half a minute
def test_a_run_ends_as_part_of_the_weights_and_goes_on_as_if_never_stopped(tmp_path):
    whole = run(config_of(tmp_path), tmp_path / "whole")
    for step, t in ((2, 0.0), (4, 0.5), (6, 1.0), (8, 1.0)):
        assert float(flatten(of_run(whole, step).params)[PATH][0]) == t
    there = of_run(whole)
    merged = merge(there.params)
    assert not any(isinstance(value, Kernel | Entry) for _, value in walk(merged))
    model, ids = there.model(), jnp.arange(12)[None] + 40
    apply = jax.jit(lambda params: model.apply({"params": params}, ids))
    np.testing.assert_allclose(apply(merged), apply(there.params), rtol=1e-4, atol=1e-4)
    assert np.abs(apply(merged) - apply(there.base.params)).max() > 1e-2
    assert (export(there, tmp_path / "out", ("merged",), say=lambda _: None)[0] / "config.json").exists()
    with pytest.raises(TypeError, match="its swish is annealed to 0.5, not to 1"):
        merge(of_run(whole, 4).params)

    half = shutil.copytree(whole, tmp_path / "half")
    for left in [half / "result.json", half / "report.md", *(half / "checkpoints").glob("0000000[68]")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    run(config_of(tmp_path), half)
    equal_trees(of_run(half).params, there.params)

    folders = [tmp_path / "member0", tmp_path / "member1"]
    outcomes = run_population([config_of(tmp_path), config_of(tmp_path, (0.0, 1.0), 1)], folders, say=lambda _: None)
    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    np.testing.assert_allclose(losses(folders[0]), losses(whole), rtol=1e-5)
    assert [float(flatten(of_run(folder, 4).params)[PATH][0]) for folder in folders] == [0.5, 0.5]
    assert [float(flatten(of_run(folder, 2).params)[PATH][0]) for folder in folders] == [0.0, 0.25]
    assert not any(isinstance(value, Kernel | Entry) for _, value in walk(merge(of_run(folders[1]).params)))
