"""What the members of one stack have in common, and the step of one of them as a function of plain arrays.

    state, metrics = member_step(form)(state, own, numbers, batch, base)

    state    by path: trainable/..., optimiser/..., step, key (raw)         the form of `peftjax.train.stored`
    own      by path: alpha, dropout and what else of a member is frozen
    numbers  learning_rate, clip, ...: see `peftjax.train.optimiser.NUMBERS`
    base     the frozen tree without what is the members' own

Everything in which members differ is an array, so that the function is mapped over them and compiled once.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from peftjax.nn.tree import flatten, unflatten_like
from peftjax.peft.partition import combine
from peftjax.peft.roles import roles
from peftjax.train.annealing import Annealing
from peftjax.train.optimiser import make_optimiser
from peftjax.train.population.member import Member
from peftjax.train.population.trees import alike, largest, ranked, signature, without_rates
from peftjax.train.routes import arrange
from peftjax.train.step import TrainState, make_step, new_state

# Fields of `config.optimizer` that decide what is computed, and are not in its state.
STATIC = ("name", "schedule", "warmup", "project_frozen_a")


@dataclasses.dataclass(frozen=True)
class Form:
    """Of one stack.

    Attributes:
        model: decoder or encoder.
        options: `config.optimizer` of a member that has every part that any member has.
        steps, accumulate: of each run.
        dropout: whether any member drops anything.
        annealing: what of the frozen tree follows the step.
        state: abstract {"trainable", "optimiser", "step", "key"}, with the most rows of any member.
        own: abstract, the same.
        base: the frozen tree without what is the members' own, in arrays.
    """

    model: Any
    options: Any
    steps: int
    accumulate: int
    dropout: bool
    annealing: Annealing
    state: Any
    own: Any
    base: Any


def key_of(member: Member) -> tuple:
    """Members with equal keys fit one form."""
    config, optimizer = member.config, member.config.optimizer
    tree = {"trainable": member.trainable, "own": without_rates(member.own)}
    # Means over a factor's elements count rows that are zero too.
    marks = {} if optimizer.name == "adafactor" else flatten(ranked(tree))
    decay = optimizer.weight_decay if optimizer.name == "adafactor" else None
    return (
        signature(tree, marks), member.model, member.annealing, tuple(optimizer[name] for name in STATIC), bool(optimizer.clip), decay,
        config.train.steps, config.train.accumulate, config.train.batch_size, config.data.length,
    )


def form_of(members: Sequence[Member]) -> Form:
    """The form of members of one key. Where a rate of dropout is there in some, it is put into the `own` of all."""
    for member, own in zip(members, alike([m.own for m in members]), strict=True):
        member.own = own
    first = members[0]
    own, trainable = (_largest([getattr(m, part) for m in members]) for part in ("own", "trainable"))
    options = max((m.config.optimizer for m in members), key=lambda o: abs(o.lora_plus_ratio - 1))
    params = combine(trainable, combine(own, first.base))
    optimiser = make_optimiser(options, first.config.train.steps, trainable, roles(params), params)
    state = jax.eval_shape(lambda t, k: _tree(new_state(t, optimiser, k)), trainable, jax.random.key(0))
    train, dropout = first.config.train, any(member.dropout for member in members)
    return Form(first.model, options, train.steps, train.accumulate, dropout, first.annealing, state, own, first.base)


def member_step(form: Form) -> Callable:
    """The step of one member; see the module."""

    def step(state, own, numbers, batch, base):
        tree = unflatten_like(form.state, state)
        now = TrainState(**tree | {"key": jax.random.wrap_key_data(tree["key"])})
        frozen = combine(unflatten_like(form.own, own), base)
        params = combine(now.trainable, frozen)
        optimiser = make_optimiser(form.options, form.steps, now.trainable, roles(params), params, numbers)
        options = {"accumulate": form.accumulate, "dropout": form.dropout, "arrange": arrange, "follow": form.annealing}
        now, metrics = make_step(form.model, optimiser, **options)(now, frozen, batch)
        return flatten(_tree(now)), metrics

    return step


def _tree(state: TrainState) -> dict[str, Any]:
    return {
        "trainable": state.trainable, "optimiser": state.optimiser, "step": state.step, "key": jax.random.key_data(state.key),
    }


def _largest(trees: Sequence[Any]) -> Any:
    """The abstract tree that holds each of these."""
    shapes = largest([flatten(tree) for tree in trees])
    leaves = {path: jax.ShapeDtypeStruct(shapes[path], leaf.dtype) for path, leaf in flatten(trees[0]).items()}
    return unflatten_like(trees[0], leaves)
