"""One compiled step of all members, whatever their forms.

Members of one form lie on a stack; the stacks of several forms are stepped in the same program. What stands in which place is data, and so
is how many chunks of a stack hold members: members come, go and end without another compilation.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peftjax.data.packing import Batch
from peftjax.train.population.form import key_of
from peftjax.train.population.member import Member
from peftjax.train.population.stack import METRICS, Stack


@dataclasses.dataclass(frozen=True)
class Stepped:
    """What a step made of one member: its place, the batch it read, its metrics (Python floats), and its share of the seconds."""

    place: int
    member: Member
    batch: Batch
    metrics: dict[str, float]
    seconds: float


class Program:
    """Places for members, and the step of all that have one.

    Args:
        members: all that will ever have a place.
        places: how many have one at the same time, of each form.
        mesh: with axes "members", "data" and "model".
        width: how many members of a form are mapped over together; None chooses (`peftjax.train.population.stack`).
    """

    def __init__(self, members: Sequence[Member], places: int, mesh: Mesh, width: int | None = None):
        by_form: dict[tuple, list[Member]] = {}
        for member in members:
            by_form.setdefault(key_of(member), []).append(member)
        self.stacks = [Stack(group, min(places, len(group)), mesh, width) for group in by_form.values()]
        self._of = {id(member): stack for stack, group in zip(self.stacks, by_form.values(), strict=True) for member in group}
        whole = NamedSharding(mesh, PartitionSpec())
        shardings = [{path: leaf.sharding for path, leaf in stack.state.items()} for stack in self.stacks]
        self._step = jax.jit(self._all, donate_argnums=0, out_shardings=(shardings, whole))

    def stack_of(self, member: Member) -> Stack:
        """The stack on which it has, or will have, a place."""
        return self._of[id(member)]

    @property
    def compilations(self) -> int:
        """How often the step was compiled."""
        return self._step._cache_size()

    def lowered(self) -> jax.stages.Lowered:
        """The step as it would be compiled for what is there now."""
        return self._step.lower(*self._arguments([[(p, m.inputs.train.at(m.step)) for p, m in stack.there] for stack in self.stacks]))

    def step(self, batches: dict[int, Batch]) -> list[tuple[Stack, Stepped]]:
        """Takes a step of every member that has a place. `batches` has each member's next, by `id`."""
        begin = time.perf_counter()
        for stack in self.stacks:
            stack.compact()
        given = [[(place, batches[id(member)]) for place, member in stack.there] for stack in self.stacks]
        states, metrics = self._step(*self._arguments(given))
        for stack, state in zip(self.stacks, states, strict=True):
            stack.state = state
        metrics = jax.device_get(metrics)
        share = (time.perf_counter() - begin) / sum(map(len, given))
        found = []
        for stack, found_there, given_there in zip(self.stacks, metrics, given, strict=True):
            for place, batch in given_there:
                at, member = divmod(place, stack.width), stack.members[place]
                member.step += 1
                found.append((stack, Stepped(place, member, batch, {name: float(found_there[name][at]) for name in METRICS}, share)))
        return found

    def _arguments(self, given: list[list[tuple[int, Batch]]]) -> tuple:
        parts = [
            (stack.state, stack.own, stack.numbers, stack.batches(there), stack.form.base, jnp.int32(stack.working()))
            for stack, there in zip(self.stacks, given, strict=True)
        ]
        return tuple(map(list, zip(*parts, strict=True)))

    def _all(self, states, owns, numbers, batches, bases, working):
        done = [
            _stepped(stack, *parts)
            for stack, *parts in zip(self.stacks, states, owns, numbers, batches, bases, working, strict=True)
        ]
        return [state for state, _ in done], [metrics for _, metrics in done]


def _stepped(stack: Stack, state: Any, own: Any, numbers: Any, batches: Any, base: Any, working: jax.Array) -> tuple[Any, Any]:
    """(state, metrics [C, W]) of one stack, chunk after chunk. The state is written where it lies. One chunk is always stepped."""

    def at(tree, chunk):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, chunk, keepdims=False), tree)

    if stack.chunks == 1:  # whole, without a copy of the state there and back
        first, whole = (lambda tree: jax.tree.map(lambda x: x[0], tree)), lambda tree: jax.tree.map(lambda x: x[None], tree)
        return whole(stack.step(*map(first, (state, own, numbers, batches)), base))

    def put(tree, chunk, values):
        return jax.tree.map(lambda x, v: jax.lax.dynamic_update_index_in_dim(x, v, chunk, 0), tree, values)

    def body(chunk, carry):
        new = stack.step(at(carry[0], chunk), at(own, chunk), at(numbers, chunk), at(batches, chunk), base)
        return put(carry, chunk, new)

    metrics = {name: jnp.zeros((stack.chunks, stack.width)) for name in METRICS}
    return jax.lax.fori_loop(0, working, body, (state, metrics))
