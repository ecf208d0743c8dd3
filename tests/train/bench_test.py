"""The benchmark counts what the program does."""

import jax
import pytest
from tiny import TINY, base

from peftjax.interop.base import Base
from peftjax.models.decoder import Decoder
from peftjax.peft import attach, lora, partition
from peftjax.peft.roles import roles
from peftjax.train.bench import SHAPES, Measured, as_table, dense_batch, gemm_rate, measure, step_flops
from peftjax.train.config import default_config
from peftjax.train.optimiser import make_optimiser
from peftjax.train.step import make_step, new_state


def test_flops_are_those_that_the_compiler_counts():
    """On an unrolled step, so that the compiler's count sees every layer; element-wise work is the difference."""
    params = attach(base(TINY), [lora(rank=4)], jax.random.key(0))
    trainable, frozen = partition(params)
    optimiser = make_optimiser(default_config().optimizer, 10, trainable, roles(params))
    batch = dense_batch(TINY.vocab_size, 4, 32)
    step = jax.jit(make_step(Decoder(TINY, unroll=True), optimiser))
    counted = step.lower(new_state(trainable, optimiser, jax.random.key(0)), frozen, batch).compile().cost_analysis()["flops"]
    expected = step_flops(TINY, trainable, 4, 32)
    assert 0.6 * counted < expected < 1.1 * counted


def test_measures_a_case_and_prints_it():
    row = measure(Base("tiny", TINY, base(TINY), None, ""), "lora", 2, 8, steps=1)
    assert row.tokens_per_s > 0 and row.gflops > 0 and row.peak_bytes > row.temporary_bytes > 0
    table = as_table([row])
    assert "| lora |" in table and "2 x 8" in table


def test_gemm_rate_is_a_rate():
    assert gemm_rate(64, repeats=3) > 1e6


def test_table_has_a_line_for_each_case():
    row = Measured("lora", 4, 256, 10, 1.0, 1024.0, 50.0, 100.0, 2.0, 10**6, 10**9)
    assert len(as_table([row] * len(SHAPES)).splitlines()) == 2 + len(SHAPES)
    assert "50 % of 100" in as_table([row])


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_batches_carry_loss_everywhere(shape):
    batch = dense_batch(50, *shape)
    assert batch.tokens.shape == batch.weights.shape == shape and batch.weights.min() == 1
    assert (batch.tokens[:, 1:] == batch.targets[:, :-1]).all()
