"""A run that trains virtual tokens and a prefix, both with encoders: it learns, goes on where it stopped, and is kept whole."""

import json
import shutil

import numpy as np
import pytest
from tiny_run import tiny_config

from peftjax.interop.exchange.adapter import extract, insert
from peftjax.interop.exchange.native import read_native, write_native
from peftjax.peft import folded, p_tuning, prefix
from peftjax.peft.folded import folded_methods
from peftjax.train.adapters import of_run
from peftjax.train.config import methods
from peftjax.train.logs import read_metrics
from peftjax.train.loop import run

pytestmark = pytest.mark.slow  # a whole run: a quarter of a minute


def config_in(folder):
    config = tiny_config(folder)
    config.peft = methods(p_tuning(length=3, hidden=8), prefix(length=4, hidden=8))
    config.train.steps, config.eval.every, config.checkpoint.every, config.checkpoint.keep_newest = 16, 16, 8, 9
    config.optimizer.learning_rate, config.optimizer.clip = 0.3, 0.0
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("context")
    return run(config_in(folder), folder / "run")


def losses(folder):
    return [line["loss"] for line in read_metrics(folder) if "loss" in line]


def test_the_loss_falls(finished):
    """On a random base, whose logits are small: by a tenth of a nat, also on rows that were not trained on."""
    assert np.mean(losses(finished)[-4:]) < np.mean(losses(finished)[:4]) - 0.05
    first, last = json.loads((finished / "result.json").read_text())["evaluations"]
    assert first["forgetting"] == 0.0 and last["loss"] < first["loss"] - 0.05


def test_a_resumed_run_is_the_run_that_went_on(finished, tmp_path):
    """The encoders are in the checkpoint: what they compute alone could not be trained on."""
    shutil.copytree(finished / "checkpoints" / "00000008", tmp_path / "checkpoints" / "00000008")
    run(config_in(finished.parent), tmp_path)
    assert losses(tmp_path) == losses(finished)[8:]


def test_stored_whole_or_folded_it_is_the_same_adapter(finished, tmp_path):
    there = of_run(finished)
    model = there.model()
    for name, tree, these in (("whole", there.params, there.methods), ("folded", folded(there.params), folded_methods(there.methods))):
        write_native(tmp_path / name, extract(tree, these), there.base)
        again = insert(there.base.params, read_native(tmp_path / name))
        ids = np.arange(12)[None]
        got, want = (np.asarray(model.apply({"params": params}, ids)) for params in (again, there.params))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=name)
