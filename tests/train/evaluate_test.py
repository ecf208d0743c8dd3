"""Evaluation: exactly zero forgetting of the untouched base, losses that do not depend on packing, answers that agree with them."""

import jax
import numpy as np
import pytest
from tiny_run import tiny_config

from peftjax.interop.base import load_base
from peftjax.peft.attach import detach
from peftjax.peft.partition import nothing
from peftjax.train.evaluate import Evaluator
from peftjax.train.inputs import prepare
from peftjax.train.prepare import prepare_model
from peftjax.train.sharding import make_mesh


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(config, base, inputs, prepared) of the tiny run, with every row held out."""
    config = tiny_config(tmp_path_factory.mktemp("evaluate"))
    base = load_base(config.base.uri)
    return config, base, prepare(config, base.tokenizer), prepare_model(config, base, make_mesh())


def evaluator(parts, **changes) -> Evaluator:
    config, base, inputs, prepared = parts
    options = config.eval.copy_and_resolve_references()
    length = changes.pop("length", config.data.length)
    options.update(changes)
    return Evaluator(prepared.model, base.tokenizer, options, inputs.held, length)


def test_untouched_base_forgets_exactly_nothing(parts):
    found = evaluator(parts).run(0, "test", parts[3].state.trainable, parts[3].frozen, None)
    again = evaluator(parts).run(0, "test", parts[3].state.trainable, parts[3].frozen, found["general_loss"])
    assert found["forgetting"] == again["forgetting"] == 0.0
    bare = detach(parts[3].frozen)
    bare = evaluator(parts).row_losses("general", nothing(bare), bare).summary()["loss"]
    assert bare == pytest.approx(found["general_loss"], rel=1e-6)


def test_losses_of_a_row_do_not_depend_on_its_neighbours(parts):
    packed = evaluator(parts, batch_size=2, length=64).row_losses("test", parts[3].state.trainable, parts[3].frozen)
    apart = evaluator(parts, batch_size=1).row_losses("test", parts[3].state.trainable, parts[3].frozen)
    np.testing.assert_allclose(packed.nll, apart.nll, rtol=1e-5)
    np.testing.assert_array_equal(packed.tokens, parts[2].held["test"].tokens.loss_lengths)


def test_teacher_forced_match_is_greedy_match(parts):
    """On an adapter moved far enough that some answers are right by both measures or by neither."""
    trainable = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), parts[3].state.trainable)
    subject = evaluator(parts)
    rows = subject.row_losses("test", trainable, parts[3].frozen)
    forced = rows.right == rows.tokens
    answers = subject.predictions("test", trainable, parts[3].frozen)
    greedy = [answer == record.response for answer, record in zip(answers, parts[2].held["test"].records, strict=True)]
    assert forced.tolist() == greedy


def test_a_loss_that_is_not_finite_stops_the_run(parts):
    broken = jax.tree.map(lambda x: x * np.nan, parts[3].state.trainable)
    with pytest.raises(FloatingPointError, match="diverged"):
        evaluator(parts, generate=False).run(3, "test", broken, parts[3].frozen, 1.0)
