"""A training step on the tiny decoder, for the tests of the step and of the optimiser."""

import jax
from tiny import TINY

from peftjax.models.decoder import Decoder, init_params
from peftjax.peft import attach, lora, partition
from peftjax.peft.roles import roles
from peftjax.train.config import default_config
from peftjax.train.optimiser import make_optimiser
from peftjax.train.step import make_step, new_state


def build(methods=None, accumulate=1, dropout=False, steps=10, **optimizer):
    """(jitted step, state, frozen) on the tiny decoder; `methods` is a LoRA of rank 4 unless given."""
    methods = [lora(rank=4)] if methods is None else methods
    options = default_config().optimizer
    options.update({"warmup": 0, "schedule": "constant", **optimizer})
    params = attach(init_params(TINY, jax.random.key(0)), methods, jax.random.key(1))
    trainable, frozen = partition(params)
    optimiser = make_optimiser(options, steps, trainable, roles(params))
    step = jax.jit(make_step(Decoder(TINY), optimiser, accumulate=accumulate, dropout=dropout))
    return step, new_state(trainable, optimiser, jax.random.key(2)), frozen
