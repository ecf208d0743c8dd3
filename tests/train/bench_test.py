"""The benchmark counts what the program does."""

import jax
import jax.numpy as jnp
import pytest
from tiny import TINY, base

from peftjax.interop.base import Base
from peftjax.models.decoder import Decoder
from peftjax.peft import attach, lora, partition, pfeiffer
from peftjax.peft.roles import roles
from peftjax.train.bench import METHODS, SHAPES, begin, dense_batch, step_flops
from peftjax.train.config import default_config
from peftjax.train.optimiser import make_optimiser
from peftjax.train.step import make_step, new_state


def test_flops_are_those_that_the_compiler_counts():
    """On an unrolled step, so that the compiler's count sees every layer; element-wise work and masked scores are the difference."""
    params = attach(base(TINY), [lora(rank=4)], jax.random.key(0))
    trainable, frozen = partition(params)
    optimiser = make_optimiser(default_config().optimizer, 10, trainable, roles(params))
    batch = dense_batch(TINY.vocab_size, 4, 32)
    step = jax.jit(make_step(Decoder(TINY, unroll=True), optimiser))
    counted = step.lower(new_state(trainable, optimiser, jax.random.key(0)), frozen, batch).compile().cost_analysis()["flops"]
    expected = step_flops(TINY, trainable, 4, 32)
    assert 0.5 * counted < expected < counted


def test_flops_by_hand():
    """TINY: width 16, 2 layers, 4 heads and 2 key/value heads of 6, ff 28, vocabulary 40; 2 rows of 3 tokens."""
    kernels = 16 * 24 + 2 * 16 * 12 + 24 * 16 + 3 * 16 * 28  # q, k and v, o, MLP
    frozen = 2 * 6 * (2 * kernels + 16 * 40)
    scores_and_values = sum(2 * 2 * seen * 4 * 6 for seen in (1, 2, 3)) * 2 * 2  # both rows, both layers
    factors = 2 * 3 * (16 + 24)  # two layers of A [3, 16] and B [3, 24] on q
    trainable, _ = partition(attach(base(TINY), [lora(rank=3, targets=".*/attn/q")], jax.random.key(0)))
    assert step_flops(TINY, trainable, 2, 3) == 2 * frozen + 3 * scores_and_values + 3 * 2 * 6 * factors


def test_doras_norms_are_counted_once_a_step():
    flat = {"a": jnp.zeros((2, 3, 16)), "b": jnp.zeros((2, 3, 24))}
    plain, dora = ({"blocks": {"attn": {"q": {"kernel": leaves}}}} for leaves in (flat, flat | {"magnitude": jnp.zeros((2, 24))}))
    assert step_flops(TINY, dora, 2, 3) - step_flops(TINY, plain, 2, 3) == 2 * 2 * 3 * 16 * 24


def test_bottlenecks_are_counted_by_their_matrices():
    trainable, _ = partition(attach(base(TINY), [pfeiffer(size=5)], jax.random.key(0)))
    nothing = jax.tree.map(lambda _: None, trainable)
    assert step_flops(TINY, trainable, 1, 2) - step_flops(TINY, nothing, 1, 2) == 3 * 2 * 2 * (2 * 2 * 5 * 16)


@pytest.mark.slow  # compiles a step for each case: ten seconds
@pytest.mark.parametrize("name", METHODS)
def test_a_case_begins_and_goes_on(name):
    begun, step = begin(Base("tiny", TINY, base(TINY), None, ""), METHODS[name], 2, 8)
    assert begun.trainable > 0 and begun.flops > 0 and begun.temporary_bytes > 0 and begun.first_step_s > 0
    assert 1 < begun.loss < 10
    assert step() > 0 and step() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_batches_carry_loss_everywhere(shape):
    batch = dense_batch(50, *shape)
    assert batch.tokens.shape == batch.weights.shape == shape and batch.weights.min() == 1
    assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()
