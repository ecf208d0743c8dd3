"""The optimiser: optax by name, with schedule, clipping by the norm of the trainables, weight decay by role and LoRA+ rates.

Decay, betas and the like lie in the optimiser's state (`optax.inject_hyperparams`), and the numbers of NUMBERS may be arrays: so they are
data, not code, and a population differs in them without another compilation.
"""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from peftjax.train.allocate import allocate, project_frozen_a

# Fields of `config.optimizer` that are no part of the optimiser's state and may yet be arrays [].
NUMBERS = ("learning_rate", "final_fraction", "clip", "lora_plus_ratio")


def schedule(options: Any, steps: int, numbers: Mapping[str, Any] | None = None):
    """step -> learning rate: linear warm-up from 0 over `warmup` steps, then constant, linear or cosine to `final_fraction` of the peak.
    `numbers` as of `make_optimiser`."""
    numbers = numbers or options
    peak, fraction, warmup = numbers["learning_rate"], numbers["final_fraction"], min(options.warmup, steps)
    rest, end = max(1, steps - warmup), peak * fraction
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, end, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=fraction),
    }[options.schedule]()
    if not warmup:
        return after
    # From peak/warmup, not from 0: a step of size 0 is a step lost.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1), after], [warmup])


CORES = {
    "adamw": lambda o, rate, mask: optax.inject_hyperparams(optax.adamw)(
        learning_rate=rate, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, mask=mask),
    "adam": lambda o, rate, mask: optax.inject_hyperparams(optax.adam)(learning_rate=rate, b1=o.b1, b2=o.b2, eps=o.eps),
    "sgd": lambda o, rate, mask: optax.inject_hyperparams(optax.sgd)(learning_rate=rate, momentum=o.momentum),
    "lion": lambda o, rate, mask: optax.inject_hyperparams(optax.lion)(
        learning_rate=rate, b1=o.b1, b2=o.b2, weight_decay=o.weight_decay, mask=mask),
    "lamb": lambda o, rate, mask: optax.inject_hyperparams(optax.lamb)(
        learning_rate=rate, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay, mask=mask),
    "adafactor": lambda o, rate, mask: optax.inject_hyperparams(optax.adafactor, static_args=("min_dim_size_to_factor",))(
        learning_rate=rate, weight_decay_rate=o.weight_decay or None, weight_decay_mask=mask),
}


WITHOUT_DECAY = ("adam", "sgd")


def make_optimiser(
    options: Any, steps: int, trainable: Any, roles: Any, params: Any = None, numbers: Mapping[str, Any] | None = None
) -> optax.GradientTransformation:
    """The optimiser of `config.optimizer` for a trainable tree. AdaLoRA's ranks are shared out by it (`peftjax.train.allocate`).

    Args:
        roles: `peftjax.peft.roles.roles` of the whole tree, `params`, which is needed for `project_frozen_a` alone.
        numbers: arrays [] by the names of NUMBERS, in the place of the options'. Which parts there are the options say.

    Raises:
        ValueError: a name that is not in `CORES`, or an option that nothing that is trained asks for.
    """
    if options.name not in CORES:
        raise ValueError(f"config.optimizer.name is {options.name!r}; it may be {', '.join(CORES)}")
    if options.weight_decay and options.name in WITHOUT_DECAY:
        raise ValueError(f"config.optimizer.weight_decay is {options.weight_decay}, and {options.name} has none; adamw, lion and lamb have")
    roles = jax.tree.map(lambda leaf, role: None if leaf is None else role, trainable, roles, is_leaf=lambda leaf: leaf is None)
    decays = jax.tree.map(lambda role: role != "vector", roles)
    numbers = numbers or options
    parts = [optax.clip_by_global_norm(numbers["clip"])] if options.clip else []
    if options.project_frozen_a:
        parts.append(project_frozen_a(params))
    parts.append(CORES[options.name](options, schedule(options, steps, numbers), decays))
    if options.lora_plus_ratio != 1.0:
        fast = jax.tree.map(lambda role: role == "fast", roles)
        if not any(jax.tree.leaves(fast)):
            raise ValueError(f"config.optimizer.lora_plus_ratio is {options.lora_plus_ratio}, and nothing that is trained is a LoRA")
        parts.append(optax.masked(optax.scale(numbers["lora_plus_ratio"]), fast))
    return allocate(optax.chain(*parts), trainable, steps)


def learning_rate(state: Any) -> jax.Array:
    """The rate that the last update used, out of the optimiser's state."""
    found = optax.tree.get_all_with_path(state, "learning_rate")
    return found[0][1]
