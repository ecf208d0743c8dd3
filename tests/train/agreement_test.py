"""Twenty steps of training agree with HF PEFT and AdapterHub, loss by loss, from initial adapters that they wrote.

The golden files are made by tests/golden/make_training_golden.py.
"""

import functools
from pathlib import Path

import numpy as np
import pytest

from peftjax.interop import hf
from peftjax.interop.base import Base, load_params
from peftjax.interop.exchange.load import load_adapter
from peftjax.models.decoder import Decoder
from peftjax.train.agreement import TOLERANCE, Agreement, as_table, compare, next_tokens, train

GOLDEN = Path(__file__).parent.parent / "golden"
METHODS = ("lora", "rslora", "dora", "houlsby", "pfeiffer", "parallel")


@functools.cache
def llama():
    opened = hf.open_directory(GOLDEN / "llama")  # no tokenizer lies there, and none is needed
    return Base("llama", opened.config, load_params(opened.config, opened.family, "hf", opened.sources, "llama"), None, "")


@pytest.mark.slow  # twenty steps of each method: fifteen seconds
@pytest.mark.parametrize("method", METHODS)
def test_losses_equal_those_of_the_peer(method):
    runs = compare(GOLDEN / "training" / method, llama())
    assert {run.weight_decay for run in runs} == {0.01, 0.0, 0.3} and all(len(run.theirs) == 20 for run in runs)
    for run in runs:
        np.testing.assert_allclose(run.ours, run.theirs, rtol=TOLERANCE, err_msg=f"{run}")


@pytest.mark.parametrize("method", ["lora", "parallel"])
def test_the_losses_would_show_a_wrong_decay(method):
    with np.load(GOLDEN / "training" / method / "losses.npz") as golden:
        batches, theirs, rate = golden["batches"], golden["losses"][-1], float(golden["learning_rate"][-1])
    adapted = load_adapter(GOLDEN / "training" / method / "initial", llama())
    model = Decoder(llama().config, segments=adapted.segments)
    (without,) = train(model, adapted.params, batches, [(rate, 0.0)], b1=0.9, b2=0.999, eps=1e-8)
    assert Agreement(method, rate, 0.0, without, theirs).difference > 3 * TOLERANCE


def test_every_token_but_the_first_is_a_target():
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    batch = next_tokens(tokens)
    np.testing.assert_array_equal(np.take_along_axis(batch.tokens, batch.loss_positions, 1) + 1, batch.targets)
    np.testing.assert_array_equal(batch.targets, tokens[:, 1:])
    assert batch.weights.sum() == 10


def test_table_names_the_largest_difference():
    run = Agreement("lora", 1e-3, 0.01, ours=np.array([2.0, 1.0]), theirs=np.array([2.0, 1.25]))
    assert run.difference == pytest.approx(0.2)
    assert as_table([("HF PEFT", run)]).splitlines()[-1] == "| lora | HF PEFT | 2 | 2.0e-01 | 2.00000 | 1.00000 | 1.25000 |"
